"""Omniglot's background set in its official layout."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path

from mlrc_lightning.data.download import extract_zip
from mlrc_lightning.data.images import ImageFiles
from mlrc_lightning.data.walk import ImageWalk
from mlrc_lightning.errors import DatasetError

NUM_CLASSES = 964
NUM_IMAGES = 19_280


class Omniglot(ImageFiles):
    """Reads ALPHABET/characterNN/DDDD_SS.png. A class is one character of one alphabet, in alphabetical order.

    Args:
        root: Folder of the alphabets, or the folder above it (`images_background`).
        archive: The official `images_background.zip`, extracted by `prepare` where the images are not there yet.

    Raises:
        DatasetError: The images are missing or not the 964 characters with 20 drawings each.

    Source: Lake, Salakhutdinov, Tenenbaum (2015), Science 350(6266); github.com/brendenlake/omniglot.
    """

    def __init__(self, root: str, archive: str | None = None) -> None:
        folder = Path(root)
        nested = folder / "images_background"
        alphabets = nested if nested.is_dir() else folder
        characters = sorted(alphabets.glob("*/character*"))
        if not characters:
            raise DatasetError(
                f"Omniglot: expected ALPHABET/characterNN folders in {folder}, found none. Download"
                " images_background.zip (github.com/brendenlake/omniglot, folder python), then run:"
                " python -m mlrc_lightning prepare dataset=omniglot dataset.images.archive=images_background.zip"
            )
        paths, labels = [], []
        walk = ImageWalk()
        for character in characters:
            files = walk.files(character)
            paths += files
            labels += [f"{character.parent.name}/{character.name}"] * len(files)
        walk.report(alphabets)
        if (len(characters), len(paths)) != (NUM_CLASSES, NUM_IMAGES):
            raise DatasetError(
                f"Omniglot: expected {NUM_CLASSES} characters and {NUM_IMAGES:,} drawings in {alphabets}, found"
                f" {len(characters)} and {len(paths):,}. Extract the archive again."
            )
        super().__init__(paths, labels, root=alphabets)

    @classmethod
    def prepare(cls, root: str, archive: str | None = None) -> None:
        """Extracts the archive where the images are not there yet. A broken extraction leaves nothing behind.

        Raises:
            DatasetError: The archive is missing, damaged, names files outside its folder, unpacks to too much, or the
                folder is not empty.
        """
        folder = Path(root)
        if archive is None or any(folder.glob("**/character01")):
            return
        source = Path(archive)
        if not source.is_file():
            raise DatasetError(f"dataset.images.archive: expected a zip file at {source}, found none.")
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
            raise DatasetError(f"{folder}: expected an empty or missing folder to extract into.")
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            extract_zip(source, partial)
            partial.rename(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DatasetError(f"{source}: expected an intact zip archive ({error}). Download it again.") from error
        except OSError as error:
            raise DatasetError(f"{source}: cannot extract it into {folder}: {error}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
