"""Trunks, the embedder, and how pixels become a trunk's input."""
