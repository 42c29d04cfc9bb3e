"""The protocol, from top to bottom: a trial, its folds, their evaluation, and the baselines."""
