"""The paper's numbers as data: search spaces, optima, tables; each file's source is in README.md beside it."""
