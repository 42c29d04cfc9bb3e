"""In-shop Clothes Retrieval of DeepFashion in its official layout."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.download import Mirrors, provide
from mlrc_lightning.data.images import ImageFiles, check_complete
from mlrc_lightning.errors import DatasetError

NAME = "In-shop Clothes Retrieval"
NUM_CLASSES = 7_982
NUM_IMAGES = {"trainval": 25_882, "query": 14_218, "gallery": 12_612}
_INDEX = "list_eval_partition.txt"
_COLUMNS = ["image_name", "item_id", "evaluation_status"]
_PART_OF = {"train": "trainval", "query": "query", "gallery": "gallery"}
_LAYOUTS = (("Eval", "Img"), (".", "."), ("Eval", "."), (".", "Img"))
"""Where the index and the folder img lie."""
_PREPARE = "python -m mlrc_lightning prepare dataset=inshop"


class InShopClothes(ImageFiles):
    """Reads the images that list_eval_partition.txt lists, in its order. A class is an item, ordered by its id.

    Its own split: 3,997 items to train and validate on, and 3,985 others whose query images search the gallery images.

    Args:
        root: The folder with Eval and Img, or with list_eval_partition.txt and img.
        download: Whether to download and extract it first, where it is not there yet.
        mirrors: Where from.

    Raises:
        DatasetError: The index or an image is missing, or a row is not as it should be.

    Source: Liu, Luo, Qiu, Wang, Tang (2016), DeepFashion, CVPR. Format of the index: docs/dataset/IN_SHOP_DATASET.md of
    open-mmlab/mmfashion. Numbers: the class InShop of open-mmlab/mmpretrain, and dataset/make_inshop_hdf5.py of
    euwern/proxynca_pp.
    """

    def __init__(self, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        if download:
            self.prepare(root, download, mirrors)
        found = _layout_in(Path(root))
        if found is None:
            raise DatasetError(
                f"{NAME}: expected Eval/{_INDEX} and Img/img in {root}, found at most one of them. Download it:"
                f" {_PREPARE} dataset.download=true; or put {_INDEX} and img.zip there and run: {_PREPARE}"
            )
        index, folder = found
        lines = index.read_text(encoding="utf-8").splitlines()
        if len(lines) < 2 or not lines[0].strip().isdecimal() or lines[1].split() != _COLUMNS:
            raise DatasetError(
                f"{index}: expected the number of images in the first line and the columns {' '.join(_COLUMNS)} in the"
                f" second, found {' / '.join(lines[:2]) or 'an empty file'}."
            )
        paths: list[Path] = []
        labels: list[str] = []
        own_split: list[str] = []
        for number, line in enumerate(lines[2:], start=3):
            cells = line.split()
            if len(cells) != len(_COLUMNS) or cells[2] not in _PART_OF:
                raise DatasetError(
                    f"{index}, line {number}: expected {' '.join(_COLUMNS)} with one of {', '.join(_PART_OF)}, found"
                    f" {line!r}."
                )
            paths.append(folder / cells[0])
            labels.append(cells[1])
            own_split.append(_PART_OF[cells[2]])
        super().__init__(paths, labels, folder, own_split)
        to_do = f"Extract img.zip again, into another folder than {folder}."
        check_complete(self, NAME, sum(NUM_IMAGES.values()), NUM_CLASSES, to_do, NUM_IMAGES)

    @classmethod
    def prepare(cls, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        """Extracts the archive where the images are not there yet, downloading it if asked to.

        Raises:
            DatasetError: The archive or the index cannot be had, or is damaged.
        """
        folder = Path(root)
        provide(NAME, folder, mirrors, download, lambda: _layout_in(folder) is not None, _PREPARE)


def _layout_in(root: Path) -> tuple[Path, Path] | None:
    """Returns the index, and the folder that its names start in."""
    places = ((root / index / _INDEX, root / images) for index, images in _LAYOUTS)
    return next(((index, images) for index, images in places if index.is_file() and (images / "img").is_dir()), None)
