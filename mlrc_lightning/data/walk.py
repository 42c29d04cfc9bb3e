"""Image files in folders, and what lies beside them."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of images, those of torchvision.datasets.folder."""


class ImageWalk:
    """Finds image files below folders, and counts by suffix and reason what it leaves out."""

    def __init__(self) -> None:
        self._left_out: defaultdict[str, list[Path]] = defaultdict(list)

    def files(self, folder: Path) -> list[Path]:
        """Returns the images in a folder and its sub-folders, each folder's own by name, folders by path.

        Hidden ones, such as those that a Mac adds to archives, are left out. Links to folders are followed.

        Source: torchvision.datasets.folder.make_dataset, whose order it is.
        """
        found = []
        for place, names in sorted(self._folders(folder)):
            for path in (Path(place, name) for name in sorted(names)):
                if path.name.startswith("."):
                    self.leave_out(path, "hidden")
                elif path.suffix.lower() not in EXTENSIONS:
                    self.leave_out(path, "no image by its suffix")
                else:
                    found.append(path)
        return found

    def leave_out(self, path: Path, reason: str) -> None:
        """Counts a file or a folder that is not read."""
        kind = "folder" if path.is_dir() else path.suffix.lower() or "file without suffix"
        self._left_out[f"{kind} ({reason})"].append(path)

    def report(self, root: Path) -> None:
        """Writes into the log what was left out, if anything."""
        if self._left_out:
            counts = [f"{len(paths):,} {key}, first {paths[0]}" for key, paths in sorted(self._left_out.items())]
            log.warning("%s: left out %s", root, "; ".join(counts))

    def _folders(self, folder: Path) -> Iterator[tuple[str, list[str]]]:
        seen = {os.path.realpath(folder)}
        for place, folders, names in os.walk(folder, followlinks=True):
            yield place, names
            kept = []
            for name in sorted(folders):
                real = os.path.realpath(os.path.join(place, name))
                if name.startswith("."):
                    self.leave_out(Path(place, name), "hidden")
                elif real in seen:
                    self.leave_out(Path(place, name), "a link to a folder that is read already")
                else:
                    seen.add(real)
                    kept.append(name)
            folders[:] = kept
