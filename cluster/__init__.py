"""Many trials: the study, the search, the worker groups, the command line."""
