"""Stanford Online Products in its official layout."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.download import Mirrors, provide
from mlrc_lightning.data.images import ImageFiles, check_complete
from mlrc_lightning.data.labels import is_integer
from mlrc_lightning.errors import DatasetError

NAME = "Stanford Online Products"
NUM_IMAGES = 120_053
NUM_CLASSES = 22_634
_INDEXES = ("Ebay_train.txt", "Ebay_test.txt")
_COLUMNS = ["image_id", "class_id", "super_class_id", "path"]
_FOLDERS = ("Stanford_Online_Products", ".")
_PREPARE = "python -m mlrc_lightning prepare dataset=sop"


class StanfordOnlineProducts(ImageFiles):
    """Reads the images that Ebay_train.txt and Ebay_test.txt list, in this order. A class is a product's class_id.

    The protocol halves the classes itself, 11,317 each, one class off the halves of the two files, which are the
    dataset's own split.

    Args:
        root: Folder of the extracted archive, or the folder it was extracted in.
        download: Whether to download and extract it first, where it is not there yet.
        mirrors: Where from.

    Raises:
        DatasetError: An index or an image is missing, or a row is not as it should be.

    Source: Song, Xiang, Jegelka, Savarese (2016), arXiv:1511.06452; docs/protocol.md, §1.6, §6.
    """

    def __init__(self, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        if download:
            self.prepare(root, download, mirrors)
        folder = _products_in(Path(root))
        if folder is None:
            raise DatasetError(
                f"{NAME}: expected {' and '.join(_INDEXES)} in {Path(root) / _FOLDERS[0]}, found at most one of them."
                f" Download it: {_PREPARE} dataset.download=true;"
                f" or put Stanford_Online_Products.zip into {root} and run: {_PREPARE}"
            )
        paths: list[Path] = []
        labels: list[int] = []
        own_split: list[str] = []
        for index, part in zip(_INDEXES, ("trainval", "test"), strict=True):
            lines = (folder / index).read_text(encoding="utf-8").splitlines()
            if not lines or lines[0].split() != _COLUMNS:
                raise DatasetError(
                    f"{folder / index}: expected the columns {' '.join(_COLUMNS)} in the first line, found"
                    f" {lines[0] if lines else 'an empty file'}."
                )
            for number, line in enumerate(lines[1:], start=2):
                cells = line.split()
                if len(cells) != len(_COLUMNS) or not is_integer(cells[1]):
                    raise DatasetError(
                        f"{folder / index}, line {number}: expected {' '.join(_COLUMNS)}, found {line!r}."
                    )
                labels.append(int(cells[1]))
                paths.append(folder / cells[3])
                own_split.append(part)
        super().__init__(paths, labels, folder, own_split)
        to_do = f"Extract Stanford_Online_Products.zip again, into another folder than {folder}."
        check_complete(self, NAME, NUM_IMAGES, NUM_CLASSES, to_do)

    @classmethod
    def prepare(cls, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        """Extracts the archive where the images are not there yet, downloading it if asked to.

        Raises:
            DatasetError: The archive cannot be had, or is damaged.
        """
        folder = Path(root)
        provide(NAME, folder, mirrors, download, lambda: _products_in(folder) is not None, _PREPARE)


def _products_in(root: Path) -> Path | None:
    return next((root / name for name in _FOLDERS if all((root / name / index).is_file() for index in _INDEXES)), None)
