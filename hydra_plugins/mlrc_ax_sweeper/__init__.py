"""Hydra sweeper on Ax: resumable, parallel, failure-proof. Drop-in for `hydra/sweeper=ax`."""
