"""Labelled images: what a dataset is, the shipped ones, and the cache of decoded pixels."""
