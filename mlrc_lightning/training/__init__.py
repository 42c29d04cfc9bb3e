"""What trains a model. Below are the addresses of classes in `conf/`."""

from mlrc_lightning._lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".losses": ("NTXentLoss", "ProxyNCALoss", "SoftTripleLoss"),
    },
)
