"""iNaturalist 2018 with the class-disjoint split of Brown et al. in its official layout."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.download import Mirrors, provide
from mlrc_lightning.data.images import ImageFiles, check_complete
from mlrc_lightning.data.labels import is_integer
from mlrc_lightning.errors import DatasetError

NAME = "iNaturalist 2018"
NUM_CLASSES = 8_142
NUM_IMAGES = {"trainval": 325_846, "test": 136_093}
_FOLDER = "train_val2018"
_INDEXES = {
    "trainval": "Inat_dataset_splits/Inaturalist_train_set1.txt",
    "test": "Inat_dataset_splits/Inaturalist_test_set1.txt",
}
_PREPARE = "python -m mlrc_lightning prepare dataset=inaturalist2018"


class INaturalist2018(ImageFiles):
    """Reads the images that the two lists of the split name, the training list first. A class is a species.

    A line is train_val2018/GROUP/SPECIES/file.jpg; species are numbered, and in the order of their numbers.

    Args:
        root: The folder with train_val2018 and Inat_dataset_splits.
        download: Whether to download and extract it first, where it is not there yet.
        mirrors: Where from.

    Raises:
        DatasetError: A list or an image is missing, or a line is not as it should be.

    Source: images: github.com/visipedia/inat_comp, folder 2018; split: Brown, Xie, Kalogeiton, Zisserman (2020),
    Smooth-AP, ECCV, as the class INaturalist2018 of pytorch-metric-learning 2.9 reads it; its test tells the numbers of
    images.
    """

    def __init__(self, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        if download:
            self.prepare(root, download, mirrors)
        folder = Path(root)
        if not _is_there(folder):
            raise DatasetError(
                f"{NAME}: expected {_FOLDER}, {' and '.join(_INDEXES.values())} in {root}, found not all of them."
                f" Download it: {_PREPARE} dataset.download=true; or put train_val2018.tar.gz and"
                f" Inat_dataset_splits.zip there and run: {_PREPARE}"
            )
        paths: list[Path] = []
        labels: list[int] = []
        own_split: list[str] = []
        group_of: dict[str, str] = {}
        for part, name in _INDEXES.items():
            index = folder / name
            for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), start=1):
                cells = line.strip().split("/")
                if len(cells) != 4 or cells[0] != _FOLDER or not is_integer(cells[2]):
                    raise DatasetError(
                        f"{index}, line {number}: expected {_FOLDER}/GROUP/NUMBER/file.jpg, found {line!r}."
                    )
                if group_of.setdefault(cells[2], cells[1]) != cells[1]:
                    raise DatasetError(
                        f"{index}, line {number}: expected species {cells[2]} in one group, found {group_of[cells[2]]}"
                        f" and {cells[1]}."
                    )
                paths.append(folder.joinpath(*cells))
                labels.append(int(cells[2]))
                own_split.append(part)
        super().__init__(paths, labels, folder, own_split)
        to_do = f"Extract train_val2018.tar.gz again, into another folder than {folder}."
        check_complete(self, NAME, sum(NUM_IMAGES.values()), NUM_CLASSES, to_do, NUM_IMAGES)

    @classmethod
    def prepare(cls, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        """Extracts the archives where the images are not there yet, downloading them if asked to.

        Raises:
            DatasetError: An archive cannot be had, or is damaged.
        """
        folder = Path(root)
        provide(NAME, folder, mirrors, download, lambda: _is_there(folder), _PREPARE)


def _is_there(root: Path) -> bool:
    return (root / _FOLDER).is_dir() and all((root / index).is_file() for index in _INDEXES.values())
