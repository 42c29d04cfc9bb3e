"""Hydra launcher: a pool of worker processes that stay warm between jobs, with devices and CPU threads divided."""
