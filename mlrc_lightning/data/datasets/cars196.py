"""Stanford Cars (Cars196) in its three known layouts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.io import loadmat

from mlrc_lightning.data.download import Mirrors, provide
from mlrc_lightning.data.images import ImageFiles, check_complete
from mlrc_lightning.data.labels import is_integer
from mlrc_lightning.errors import DatasetError

NAME = "Cars196"
NUM_IMAGES = 16_185
NUM_CLASSES = 196
_LABELED_TRAIN = "cars_train_annos.mat"
_DEVKITS = ("devkit", "devkit/devkit", "car_devkit/devkit")
_LABELED_TEST = "cars_test_annos_withlabels.mat"
_PREPARE = "python -m mlrc_lightning prepare dataset=cars196"

Table = tuple[list[Path], list[int]]
"""Files and their class ids, 1 to 196, in the same order in all layouts."""


class Cars196(ImageFiles):
    """Reads the images that the annotations list. Classes are in the order of their ids.

    Args:
        root: A folder with one of the layouts, or the folder above it:
            `cars_annos.mat` and car_ims/*.jpg (the one that the paper used);
            `anno_train.csv`, `anno_test.csv`, `names.csv` and car_data/car_data/{train,test}/MODEL/*.jpg;
            devkit/`cars_train_annos.mat`, `cars_test_annos_withlabels.mat` (there or in devkit), cars_train/*.jpg and
            cars_test/*.jpg. Kaggle has each of these folders in another one of its name (cars_train/cars_train).
        download: Whether to download and extract it first, where it is not there yet.
        mirrors: Where from.

    Raises:
        DatasetError: The annotations or an image are missing, or a row is not as it should be.

    Source: Krause, Stark, Deng, Fei-Fei (2013), 3dRR; docs/protocol.md, §1.6, §6. The second layout as
    pytorch-metric-learning 2.9 reads it, the third as torchvision's StanfordCars does.
    """

    def __init__(self, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        if download:
            self.prepare(root, download, mirrors)
        found = _layout_in(Path(root))
        if found is None:
            raise DatasetError(
                f"{NAME}: expected in {root} {'; or '.join(' and '.join(layout.files) for layout in _LAYOUTS)}."
                f" Found none of them complete. Download it: {_PREPARE} dataset.download=true;"
                f" or put car_ims.tgz and cars_annos.mat there and run: {_PREPARE}"
            )
        folder, layout = found
        paths, labels = layout.read(folder)
        super().__init__(paths, labels, root=folder)
        to_do = f"Extract the archive again, into another folder than {folder}."
        check_complete(self, NAME, NUM_IMAGES, NUM_CLASSES, to_do)

    @classmethod
    def prepare(cls, root: str, download: bool = False, mirrors: Mirrors = ()) -> None:
        """Extracts the archive where the images are not there yet, downloading it if asked to.

        Raises:
            DatasetError: The archive cannot be had, or is damaged.
        """
        folder = Path(root)
        provide(NAME, folder, mirrors, download, lambda: _layout_in(folder) is not None, _PREPARE)


class _Layout(NamedTuple):
    """Files and folders that tell a layout, and how it is read."""

    files: Sequence[str]
    read: Callable[[Path], Table]


def _read_annos(folder: Path) -> Table:
    names, labels = _annotations(folder / "cars_annos.mat", "relative_im_path")
    images = _innermost(folder / "car_ims")
    return [images.parent / name for name in names], labels


def _innermost(folder: Path) -> Path:
    """Returns the folder of the same name in a folder, or the folder itself."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def _read_devkit(folder: Path) -> Table:
    devkit = next(folder / name for name in _DEVKITS if (folder / name / _LABELED_TRAIN).exists())
    test = folder / _LABELED_TEST
    test = test if test.exists() else devkit / _LABELED_TEST
    paths, labels = [], []
    for part, table in (("train", devkit / _LABELED_TRAIN), ("test", test)):
        names, ids = _annotations(table, "fname")
        images = _innermost(folder / f"cars_{part}")
        paths += [images / name for name in names]
        labels += ids
    return paths, labels


def _read_class_folders(folder: Path) -> Table:
    """Reads rows of file, four corners, class id. The folder is the id's line in names.csv, slashes as dashes."""
    models = (folder / "names.csv").read_text(encoding="utf-8").splitlines()
    paths, labels = [], []
    for part in ("train", "test"):
        table = folder / f"anno_{part}.csv"
        with table.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if len(row) != 6 or not is_integer(row[5].strip()) or not 1 <= int(row[5]) <= len(models):
                    raise DatasetError(
                        f"{table}, line {number}: expected a file, four corners and a class id of 1 to {len(models)},"
                        f" found {','.join(row)!r}."
                    )
                model = models[int(row[5]) - 1].strip().replace("/", "-")
                paths.append(folder / "car_data" / "car_data" / part / model / row[0])
                labels.append(int(row[5]))
    return paths, labels


_LAYOUTS = (
    _Layout(("cars_annos.mat", "car_ims"), _read_annos),
    _Layout(("anno_train.csv", "anno_test.csv", "names.csv", "car_data"), _read_class_folders),
    *(
        _Layout((f"{devkit}/{_LABELED_TRAIN}", test, "cars_train", "cars_test"), _read_devkit)
        for devkit in _DEVKITS
        for test in (_LABELED_TEST, f"{devkit}/{_LABELED_TEST}")
    ),
)


def _annotations(table: Path, name_field: str) -> tuple[list[str], list[int]]:
    """Reads file names and class ids from MATLAB's struct array."""
    try:
        rows = loadmat(table, squeeze_me=True)["annotations"].reshape(-1)
        numbers = [float(number) for number in rows["class"]]
        if not all(number.is_integer() for number in numbers):
            raise ValueError("a class that is no integer")
        return [str(name) for name in rows[name_field]], [int(number) for number in numbers]
    except Exception as error:  # damaged files fail in many ways in scipy
        raise DatasetError(
            f"{table}: expected MATLAB annotations with {name_field} and class, found: {error}. Get the file again."
        ) from error


def _layout_in(root: Path) -> tuple[Path, _Layout] | None:
    """Returns the folder with a complete layout, and the layout. The root comes before the folders in it."""
    if not root.is_dir():
        return None
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    complete = (
        (folder, layout)
        for layout in _LAYOUTS
        for folder in folders
        if all((folder / name).exists() for name in layout.files)
    )
    return next(complete, None)
