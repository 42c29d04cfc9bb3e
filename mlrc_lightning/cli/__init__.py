"""The commands of `python -m mlrc_lightning`: one file a command."""

from mlrc_lightning._lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {".check": ("CheckFirst",)})
