"""Folders and models of the paper's own program, powerful-benchmarker."""
