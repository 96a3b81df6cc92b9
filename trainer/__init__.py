"""One trial: hyperparameters, data, network, training loop, bundle. Knows no Tune, no study and no Streamlit."""
