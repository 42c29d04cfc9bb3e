"""Trunks, the embedder, and how pixels become a trunk's input. Below are the addresses of classes in `conf/`."""

from mlrc_lightning._lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".bn_inception": ("BNInception",),
        ".small_cnn": ("SmallCNN",),
        ".timm_trunk": ("TimmTrunk",),
        ".trunk": ("Normalization", "Trunk"),
    },
)
