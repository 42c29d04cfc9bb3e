"""Features of a frozen trunk, computed once: a proxy of the protocol in which embedder and loss alone are trained.

Of every image the trunk's features of its centre crop and, of images to train on, of a few augmented views as well. The
views are the same for all folds, trials and runs: that, and the trunk that does not learn, is what makes it a proxy.
Files lie beside the decoded images, and are shared by all processes through the page cache. Like these they are two, so
that a search can be shown never to open the one of the test images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mlrc_lightning.data.augment import TrainTransform, center_crop
from mlrc_lightning.data.cache import CachedImages, Half
from mlrc_lightning.data.sampling import Batch
from mlrc_lightning.errors import DatasetError, NonFiniteError
from mlrc_lightning.files import only_one, write_json
from mlrc_lightning.models.folder import file_digest, save_weights
from mlrc_lightning.models.trunk import Trunk
from mlrc_lightning.parallel.collectives import part_of, rank, world_size

log = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_BATCH = 32
"""Images of a step, whose views go through the trunk so many at a time: more only cost memory."""
_CENTER = 0
"""Which of an image's features are those of its centre crop; its views follow."""


@dataclass(frozen=True)
class CachedFeatures:
    """Features of one part of a dataset, by the dataset's own indices.

    Attributes:
        file: (M, 1 + views, F), float32, of each image the centre crop first.
        indices: Dataset index of each image; (M,), int64, ascending.
        num_views: Augmented views of an image; 0 for images that are never trained on.
        num_features: F.
        digest: SHA-256 of the file.
        trunk_weights: File of the trunk's weights.
        trunk_digest: SHA-256 of that.
    """

    file: Path
    indices: NDArray[np.int64]
    num_views: int
    num_features: int
    digest: str
    trunk_weights: Path
    trunk_digest: str

    def open(self) -> NDArray[np.float32]:
        """Maps the features into memory. Pages are shared by all processes that do so."""
        shape = (len(self.indices), 1 + self.num_views, self.num_features)
        return np.memmap(self.file, dtype=np.float32, mode="r", shape=shape).view(np.ndarray)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where some images are.

        Raises:
            KeyError: An image is not among those that were computed.
        """
        found = np.searchsorted(self.indices, indices)
        is_there = self.indices[np.minimum(found, len(self.indices) - 1)] == indices
        if not is_there.all():
            raise KeyError(f"images {indices[~is_there][:5].tolist()} are not in {self.file}")
        return found

    def description(self) -> dict[str, Any]:
        """Returns what a record tells of them."""
        return {"views": self.num_views, "sha256": self.digest, "trunk_sha256": self.trunk_digest}


class TrainFeatures(Dataset[tuple[Tensor, Tensor]]):
    """Batches to train on: of each image one view, chosen by the seed of its augmentation. Only this rank's are read.

    Args:
        features: With views.
        labels: Class position of every image of the dataset; (N,), int64.
        position: Of each class among those trained on.
    """

    def __init__(self, features: CachedFeatures, labels: NDArray[np.int64], position: Mapping[int, int]) -> None:
        self._features = features
        self._positions = np.full(int(labels.max()) + 1, -1, dtype=np.int64)
        self._positions[list(position)] = list(position.values())
        self._labels = labels
        self._opened = features.open()
        self._place = (rank(), world_size())  # read here: a process that reads for a rank is none itself

    def __getitem__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        drawn = np.array(batch, dtype=np.int64)
        own = drawn[part_of(len(batch), *self._place)]
        values = self._opened[self._features.rows(own[:, 0]), 1 + own[:, 1] % self._features.num_views]
        return torch.from_numpy(values), torch.from_numpy(self._positions[self._labels[drawn[:, 0]]])


class EvaluationFeatures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches to evaluate: the features of centre crops.

    Args:
        features: Of the images.
        labels: Class position of every image of the dataset; (N,), int64.
    """

    def __init__(self, features: CachedFeatures, labels: NDArray[np.int64]) -> None:
        self._features, self._labels = features, labels
        self._opened = features.open()

    def __getitem__(self, batch: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        values = self._opened[self._features.rows(np.array(batch, dtype=np.int64)), _CENTER]
        return torch.from_numpy(values), torch.from_numpy(self._labels[batch]), torch.tensor(batch)


def cached_features(
    images: CachedImages,
    transform: TrainTransform,
    num_views: int,
    trunk: Callable[[], Trunk],
    trunk_key: Mapping[str, Any],
    device: torch.device,
    half: Half,
) -> CachedFeatures:
    """Returns the features of some images, computed first where they are missing or something they come from changed.

    A second process that wants the same waits for the first; a killed one goes on where it stopped.

    Args:
        images: Decoded.
        transform: Of augmented views.
        num_views: Augmented views of an image; 0: its centre crop alone.
        trunk: Makes the trunk; called only where something is to be computed.
        trunk_key: What the trunk is, as JSON; another one is another file.
        device: Where to compute.
        half: Name of the files.

    Raises:
        DatasetError: The disk is too small.
        NonFiniteError: The trunk gives features that are NaN or infinite.
    """
    folder = images.file.parent / "features"
    made_of = {
        "version": _FORMAT_VERSION,
        "pillow": PIL.__version__,
        "pixels": images.file.name,
        "indices": hashlib.sha256(images.indices.tobytes()).hexdigest(),
        "transform": vars(transform) if num_views else {"crop": transform.crop},
        "views": num_views,
        "trunk": dict(trunk_key),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    found = _load(folder, half, key, images, num_views)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder / f"{half}-{key}.lock", "computes the same features"):
        found = _load(folder, half, key, images, num_views)  # of the process that was waited for
        if found is not None:
            return found
        made = trunk().to(device).eval()
        try:
            return _compute(images, transform, num_views, made, device, folder, half, key)
        except OSError as error:
            raise DatasetError(
                f"{folder}: expected to write features of the trunk there, found: {error}."
                " Free some space, or name another folder with data_root=FOLDER."
            ) from error


def _load(folder: Path, half: Half, key: str, images: CachedImages, num_views: int) -> CachedFeatures | None:
    try:
        index = json.loads((folder / f"{half}-{key}.json").read_text(encoding="utf-8"))
        found = CachedFeatures(
            folder / f"{half}-{key}.float32", images.indices, num_views, index["num_features"], index["sha256"],
            folder / index["trunk"], index["trunk_sha256"],
        )  # fmt: skip
        expected_bytes = len(images.indices) * (1 + num_views) * found.num_features * 4
        is_whole = found.file.stat().st_size == expected_bytes and found.trunk_weights.exists()
        return found if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: made again, it holds nothing that is not in images and trunk


def _compute(
    images: CachedImages,
    transform: TrainTransform,
    num_views: int,
    trunk: Trunk,
    device: torch.device,
    folder: Path,
    half: Half,
    key: str,
) -> CachedFeatures:
    partial = folder / f"{half}-{key}.partial"
    row_bytes = (1 + num_views) * trunk.num_features * 4
    num_images = len(images.indices)
    done = min(partial.stat().st_size // row_bytes, num_images) if partial.exists() else 0
    needed, free = (num_images - done) * row_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"{folder}: expected {needed / 1e9:.1f} GB for features of the trunk, found {free / 1e9:.1f} GB free."
            " Free some space, take fewer trunk.views, or name another folder with data_root=FOLDER."
        )
    opened = images.open()
    with (
        partial.open("r+b" if partial.exists() else "w+b") as file,
        tqdm(total=num_images, initial=done, desc=f"features {half}", unit="image", disable=None, leave=False) as bar,
    ):
        file.truncate(done * row_bytes)
        file.seek(done * row_bytes)
        began = time.monotonic()
        for start in range(done, num_images, _BATCH):
            chosen = images.indices[start : start + _BATCH].tolist()
            views = np.stack(
                [v for index in chosen for v in _views(images.image(opened, index), index, transform, num_views)]
            )
            values = torch.cat([_forward(trunk, block, device) for block in np.array_split(views, 1 + num_views)])
            if not bool(values.isfinite().all()):
                raise NonFiniteError(
                    f"The trunk gives features that are not finite, of images {chosen[:5]}. Is it whole?"
                )
            file.write(values.numpy().tobytes())
            if start == done:
                seconds = (time.monotonic() - began) / len(chosen) * (num_images - start)
                log.info(
                    "Features of %s images (%s) x %d: %.0f MB, about %.0f s, into %s",
                    f"{num_images - start:,}", half, 1 + num_views, num_images * row_bytes / 1e6, seconds, folder,
                )  # fmt: skip
            bar.update(len(chosen))
        file.flush()
        os.fsync(file.fileno())
    weights = folder / f"trunk-{key}.safetensors"
    save_weights(weights, trunk)
    index = {
        "num_features": trunk.num_features,
        "sha256": file_digest(partial),
        "trunk": weights.name,
        "trunk_sha256": file_digest(weights),
    }
    os.replace(partial, folder / f"{half}-{key}.float32")
    write_json(folder / f"{half}-{key}.json", index)
    found = _load(folder, half, key, images, num_views)
    assert found is not None
    return found


def _forward(trunk: Trunk, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Returns features on the host, (B, H, W, 3) uint8 → (B, F), float32."""
    with torch.inference_mode():
        # channels stay last in memory, which halves the time of depthwise convolutions on a CPU
        features: Tensor = trunk(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))
        return features.float().cpu()


def _views(
    image: NDArray[np.uint8], index: int, transform: TrainTransform, num_views: int
) -> Iterator[NDArray[np.uint8]]:
    """Yields the centre crop, then the augmented views of an image, which depend on its index alone."""
    yield center_crop(image, transform.crop)
    for view in range(num_views):
        yield transform(image, np.random.default_rng([index, view]))
