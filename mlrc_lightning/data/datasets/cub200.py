"""Caltech-UCSD Birds-200-2011 in its official layout."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.data.download import Mirrors, provide
from mlrc_lightning.data.images import check_complete
from mlrc_lightning.errors import DatasetError

NAME = "CUB-200-2011"
NUM_IMAGES = 11_788
NUM_CLASSES = 200
_FOLDERS = ("CUB_200_2011/images", "images", ".", "cub2011/CUB_200_2011/images")
"""From the folder that the archive is extracted in, from the extracted one, images alone, the original code's."""
_PREPARE = "python -m mlrc_lightning prepare dataset=cub200"


class CUB200(ImageFolder):
    """Reads images/NNN.Species/file.jpg. Species are in alphabetical order, which is that of their numbers.

    Where `images.txt` is there as well, the images must be exactly those that it lists.

    Args:
        root: Folder of the extracted archive, or the folder it was extracted in.
        download: Whether to download and extract it first, where it is not there yet.
        mirrors: Where from.

    Raises:
        DatasetError: The images are missing, or not all of them are there.

    Source: Wah, Branson, Welinder, Perona, Belongie (2011), CNS-TR-2011-001; docs/protocol.md, §1.6, §6.
    """

    def __init__(self, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        if download:
            self.prepare(root, download, mirrors)
        folder = _images_in(Path(root))
        if folder is None:
            raise DatasetError(
                f"{NAME}: expected the folder CUB_200_2011/images in {root}, found none. Download it:"
                f" {_PREPARE} dataset.download=true; or put CUB_200_2011.tgz there and run: {_PREPARE}"
            )
        super().__init__(str(folder))
        to_do = f"Extract CUB_200_2011.tgz again, into another folder than {folder}."
        index = folder.parent / "images.txt"
        if index.is_file():
            listed = {line.split(maxsplit=1)[1].strip() for line in index.read_text().splitlines() if " " in line}
            found = {self.describe(number) for number in range(len(self.paths))}
            differing = sorted(listed ^ found)
            if differing:
                expected = "an image" if differing[0] in listed else "no image, since images.txt does not list it,"
                raise DatasetError(
                    f"{NAME}: expected {expected} at {folder / differing[0]}; files that differ from {index}:"
                    f" {len(differing):,}. {to_do}"
                )
        check_complete(self, NAME, NUM_IMAGES, NUM_CLASSES, to_do)

    @classmethod
    def prepare(cls, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        """Extracts the archive where the images are not there yet, downloading it if asked to.

        Raises:
            DatasetError: The archive cannot be had, or is damaged.
        """
        folder = Path(root)
        provide(NAME, folder, mirrors, download, lambda: _images_in(folder) is not None, _PREPARE)


def _images_in(root: Path) -> Path | None:
    return next((root / name for name in _FOLDERS if any((root / name).glob("001.*"))), None)
