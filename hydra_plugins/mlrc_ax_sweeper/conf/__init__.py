"""Config files that the search path plugin adds to every Hydra app."""
