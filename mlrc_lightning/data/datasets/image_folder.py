"""A folder of class folders of images."""

from __future__ import annotations

from pathlib import Path

from mlrc_lightning.data.images import ImageFiles, require_folder
from mlrc_lightning.data.walk import EXTENSIONS, ImageWalk
from mlrc_lightning.errors import DatasetError


class ImageFolder(ImageFiles):
    """Reads root/class/image and root/class/…/image. Classes are in alphabetical order, as the paper's CUB200.

    What is not read is counted in the log by suffix and reason.

    Args:
        root: The folder of class folders.

    Raises:
        DatasetError: The folder is missing, or has no class folder, or one without an image.
    """

    def __init__(self, root: str) -> None:
        folder = Path(root)
        require_folder(folder, "dataset.images.root", "Put one folder per class there, or name another folder.")
        walk = ImageWalk()
        paths: list[Path] = []
        labels: list[str] = []
        empty: list[str] = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                walk.leave_out(path, "hidden")
            elif not path.is_dir():
                walk.leave_out(path, "in no class folder")
            else:
                files = walk.files(path)
                paths += files
                labels += [path.name] * len(files)
                empty += [] if files else [path.name]
        walk.report(folder)
        if empty:
            more = f" (and {len(empty) - 1:,} more)" if len(empty) > 1 else ""
            raise DatasetError(
                f"dataset.images.root: expected images ({', '.join(EXTENSIONS)}) in every class folder of {folder},"
                f" found none in {empty[0]}{more}. Add images, or move the folder elsewhere."
            )
        if not paths:
            raise DatasetError(
                f"dataset.images.root: expected class folders in {folder}, found none. The layout is"
                " root/class/image.jpg."
            )
        super().__init__(paths, labels, root=folder)
