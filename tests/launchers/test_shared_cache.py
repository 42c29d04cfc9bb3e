"""Decoded images in the workers of one machine: the same pages of memory, not a copy in each."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from mlrc_lightning.data.cache import CachedImages

from .test_local import _no_pool_stays, wait_for  # noqa: F401 - a fixture

NUM_IMAGES, SIDE = 64, 128
NUM_BYTES = NUM_IMAGES * SIDE * SIDE * 3


def memory_of(end_of_name: str, process: int | str = "self") -> dict[str, int]:
    """What a process has of mapped files in memory, in bytes, by the kernel's words, e.g. Shared_Clean."""
    found: dict[str, int] = {}
    is_inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        word, _, rest = line.partition(":")
        if "-" in word.split()[0] and not rest.strip().endswith("kB"):
            is_inside = line.endswith(end_of_name)
        elif is_inside and rest.strip().endswith("kB"):
            found[word] = found.get(word, 0) + 1024 * int(rest.split()[0])
    return found


def read_all(cfg: DictConfig) -> dict[str, int]:
    """A job: reads every image, and measures while the other job has done so too."""
    file = Path(cfg.file)
    sides = np.full((NUM_IMAGES, 2), SIDE)
    cache = CachedImages(file, np.arange(NUM_IMAGES), np.arange(NUM_IMAGES) * SIDE * SIDE * 3, sides)
    pixels = cache.open()
    total = sum(int(cache.image(pixels, index).sum()) for index in range(NUM_IMAGES))

    def meet(what: str) -> None:
        (file.parent / f"{what}_{cfg.x}").touch()
        end = time.monotonic() + 30
        while len(list(file.parent.glob(f"{what}_*"))) < 2 and time.monotonic() < end:
            time.sleep(0.01)

    meet("read")
    found = {**memory_of(str(file)), "total": total}
    meet("measured")
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel tells of no /proc/PID/smaps")
@pytest.mark.slow
def test_local_workers_share_the_memory_of_decoded_images(
    make_launcher: Callable[..., Launcher], tmp_path: Path
) -> None:
    file = tmp_path / "trainval.uint8"
    content = np.random.default_rng(0).integers(0, 256, NUM_BYTES, dtype=np.uint8)
    content.tofile(file)
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=2", task=read_all)
    for returned in launcher.launch([["x=1", f"+file={file}"], ["x=2", f"+file={file}"]], 0):
        found = returned.return_value
        assert found["total"] == int(content.sum())
        assert found["Rss"] == found["Shared_Clean"] + found["Shared_Dirty"] >= NUM_BYTES
        assert found["Private_Clean"] == found["Private_Dirty"] == found["Anonymous"] == 0
        assert found["Pss"] == pytest.approx(found["Rss"] / 2, rel=0.1), "each page is counted half, once in both"
