"""A folder of class folders of images."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.images import EXTENSIONS, ImageFiles, image_files_in, require_folder
from mlrc_lightning.errors import DatasetError


class ImageFolder(ImageFiles):
    """Reads root/class/image; classes in alphabetical order, as the paper's CUB200.

    Args:
        root: The folder of class folders.

    Raises:
        DatasetError: The folder is missing, or holds no class folder with an image.
    """

    def __init__(self, root: str) -> None:
        folder = Path(root)
        require_folder(folder, "dataset.images.root", "Put one folder per class there, or name another folder.")
        classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        paths, labels = [], []
        for path in classes:
            files = image_files_in(path)
            paths += files
            labels += [path.name] * len(files)
        if not paths:
            raise DatasetError(
                f"dataset.images.root: expected images ({', '.join(EXTENSIONS)}) in class folders of {folder}, found"
                f" {len(classes)} folders and no image in them. The layout is root/class/image.jpg."
            )
        super().__init__(paths, labels, root=folder)
