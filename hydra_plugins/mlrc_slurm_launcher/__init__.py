"""Hydra launcher on SLURM: tells job ids before it waits, re-attaches, and knows how every job ended."""
