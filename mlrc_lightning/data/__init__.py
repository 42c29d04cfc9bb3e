"""Which images a trial sees: datasets, splits, batches. Below are the addresses of classes in `conf/`."""

from mlrc_lightning._lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".datasets.cars196": ("Cars196",),
        ".datasets.cub200": ("CUB200",),
        ".datasets.glyphs": ("Glyphs",),
        ".datasets.image_csv": ("ImageCsv",),
        ".datasets.image_folder": ("ImageFolder",),
        ".images": ("ImageFiles", "LabeledImages"),
        ".datasets.inaturalist2018": ("INaturalist2018",),
        ".datasets.inshop": ("InShopClothes",),
        ".datasets.omniglot": ("Omniglot",),
        ".datasets.sop": ("StanfordOnlineProducts",),
        ".sampling": ("Batches", "MPerClassBatches"),
        ".splits": ("ClassDisjointSplit", "ClosedSetSplit", "FoldSplit", "MLRCSplit", "PredefinedSplit", "Splitter"),
    },
)
