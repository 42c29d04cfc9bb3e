"""The commands of `python -m mlrc_lightning`: one file a command."""
