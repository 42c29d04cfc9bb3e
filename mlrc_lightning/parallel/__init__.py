"""Signals, collectives, ranks, and folds at once."""
