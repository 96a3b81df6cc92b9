"""Looking at sweeps with Streamlit. Imports no Ray, so results can be browsed when the cluster is gone."""
