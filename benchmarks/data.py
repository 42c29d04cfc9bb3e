"""Training images by each data path against PIL and torchvision: time, peak memory, pixels.

    python benchmarks/data.py [--threads 1] [--rounds 5] [--images 256] [--json FILE]

The work is what the paper's transform does to a batch of 32 photos of CUB200's size: Resize(256), a random resized crop
to 227 (area 0.16 to 1, ratio 0.75 to 1.33), a flip; uint8 from there on, as ours is normalised on the device. `peer`
decodes the file with Pillow and does all of it with torchvision, as every trainer with a torchvision transform. The
others read the decoded cache through our own loader:

    pil            crop and flip by Pillow: the peer's pixels
    torch          by torch: the peer's pixels but for rounding
    opencv         by the filters of OpenCV that come closest; this and the next are none of our paths
    grid_sample    by torch's grid_sample, which has no antialiasing
    gather         what augmentation=device sends to the device: pixels of the boxes, and the weights of the filter
    resident       what it sends where the device has the images: the weights alone
    device on CPU  gather, and then the device's part on the CPU, which is no use but for comparison
    kornia         its RandomResizedCrop and flip of whole batches, of the 256 x 256 in the middle of each image, as it
                   takes images of one size; boxes of its own, no antialiasing

Each measurement is a process of its own, so that peaks of memory are its own; the sides take turns in every round.
Times are those of the CPU, so that others on the machine disturb less; ratios are the peer's median over the row's.
Photos are those of MLRC_SHARED, enlarged to CUB200's usual 375 pixels and grained until a file has CUB200's usual size;
without MLRC_SHARED they are generated.
"""

import argparse
import io
import json
import os
import resource
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import in_a_process, keep, resident_megabytes

RESIZE, CROP, BATCH = 256, 227, 32
SCALE, RATIO, FLIP = (0.16, 1.0), (0.75, 1.33), 0.5
SHORTER_SIDE, KILOBYTES = 375, 97
"""Of a photo of CUB200: most are 500 x 375, and 11,788 of them have 1.1 GB."""
SHARED = Path(os.environ.get("MLRC_SHARED", Path(__file__).parents[2] / "shared"))
GOALS = {"pil": 4.9, "torch": 18, "gather": 250}
"""Times as fast as the peer."""
SIDES = ("peer", "pil", "torch", "opencv", "grid_sample", "gather", "resident", "device on CPU", "kornia")
NEEDS = {"opencv": "cv2", "kornia": "kornia"}
"""Modules of peers that may not be installed."""
MIN_SECONDS, MIN_BATCHES = 1.0, 8
KEPT_BATCHES = 4
"""Of each side, to compare their pixels."""


def measure(side: str, folder: Path, num_threads: int) -> dict[str, Any]:
    """Takes batches for a second, after the first one. It is called in a process of its own."""
    import mlrc_lightning._torchvision  # noqa: F401

    import numpy as np
    import torch

    torch.set_num_threads(num_threads)
    of_peers = {"peer": peer_batches, "kornia": kornia_batches}
    batches = of_peers[side](folder) if side in of_peers else our_batches(side, folder)
    kept = [next(batches)]
    before = resident_megabytes()
    began, seconds, number = time.process_time(), 0.0, 0
    while seconds < MIN_SECONDS or number < MIN_BATCHES:
        batch = next(batches)
        seconds = time.process_time() - began
        number += 1
        if number < KEPT_BATCHES:
            kept.append(batch)
    extra = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    if isinstance(kept[0], torch.Tensor) and side not in of_peers:
        np.save(folder / f"{side}.npy", torch.cat(kept).numpy())
    return {"seconds": seconds / number / BATCH, "extra_megabytes": extra}


def peer_batches(folder: Path) -> Any:
    import torch
    from PIL import Image
    from torchvision import transforms
    from torchvision.transforms.functional import pil_to_tensor

    transform = transforms.Compose(
        [
            transforms.Resize(RESIZE),
            transforms.RandomResizedCrop(CROP, scale=SCALE, ratio=RATIO),
            transforms.RandomHorizontalFlip(FLIP),
        ]
    )
    files = sorted((folder / "photos").iterdir())
    number = 0
    while True:
        images = []
        for _ in range(BATCH):
            with Image.open(files[number % len(files)]) as image:
                images.append(pil_to_tensor(transform(image.convert("RGB"))))
            number += 1
        yield torch.stack(images)


def kornia_batches(folder: Path) -> Any:
    import torch
    from kornia.augmentation import RandomHorizontalFlip, RandomResizedCrop

    from mlrc_lightning.data.augment import center_crop

    crop, flip = RandomResizedCrop((CROP, CROP), scale=SCALE, ratio=RATIO, p=1.0), RandomHorizontalFlip(p=FLIP)
    _, cache = cached(folder)
    pixels, number = cache.open(), 0
    while True:
        indices = cache.indices[[(number + i) % len(cache.indices) for i in range(BATCH)]]
        number += BATCH
        images = [torch.from_numpy(center_crop(cache.image(pixels, index), RESIZE).copy()) for index in indices]
        yield flip(crop(torch.stack(images).permute(0, 3, 1, 2).float())).round().byte()


def our_batches(side: str, folder: Path) -> Any:
    from mlrc_lightning.data.augment import CROPS_ON_THE_CPU
    from mlrc_lightning.data.crops import Crops

    CROPS_ON_THE_CPU.update(opencv=crop_by_opencv, grid_sample=crop_by_grid_sample)
    augmentation = side if side in CROPS_ON_THE_CPU else "device"
    datamodule = our_datamodule(folder, augmentation, side == "resident")
    for batch in datamodule.train_dataloader():
        ready = datamodule.on_after_batch_transfer(batch) if side == "device on CPU" else batch
        yield tuple(ready[0]) if isinstance(ready[0], Crops) else ready[0]


def our_datamodule(
    folder: Path, augmentation: str, is_resident: bool, num_workers: int = 0, batch_size: int = BATCH, crop: int = CROP
) -> Any:
    """Returns the photos as our training reads them, in order, each a class of its own."""
    import numpy as np

    from mlrc_lightning.data.augment import TrainTransform
    from mlrc_lightning.data.splits import FoldSplit
    from mlrc_lightning.training.datamodule import FoldDataModule, Pixels, ResidentPixels

    images, cache = cached(folder)
    everything = np.arange(len(images.labels))
    split = FoldSplit(fold=0, labels=images.labels, train=everything[:-2], val=everything[-2:-1], test=everything[-1:])

    class InOrder:
        def __init__(self, labels: Any, indices: Any) -> None:
            self._indices = indices

        def batch(self, number: int) -> Any:
            return self._indices[np.arange(number * batch_size, (number + 1) * batch_size) % len(self._indices)]

    return FoldDataModule(
        Pixels(cache, images.labels), split, TrainTransform(crop, SCALE, RATIO, FLIP), InOrder, 10**6, batch_size, 0,
        num_workers, augmentation=augmentation, resident=ResidentPixels(cache) if is_resident else None,
    )  # fmt: skip


def crop_by_opencv(image: Any, crop: Any, target: Any) -> None:
    """An axis that grows is interpolated linearly, one that shrinks averaged over the area of each new pixel."""
    import cv2

    cv2.setNumThreads(0)
    size = target.shape[-1]
    across, down = (cv2.INTER_AREA if length > size else cv2.INTER_LINEAR for length in (crop.width, crop.height))
    resized = crop.of(image)
    if across != down:
        resized = cv2.resize(resized, (size, crop.height), interpolation=across)
    resized = cv2.resize(resized, (size, size), interpolation=down)
    cv2.split(cv2.flip(resized, 1) if crop.is_flipped else resized, list(target))


def crop_by_grid_sample(image: Any, crop: Any, target: Any) -> None:
    """Reads the four pixels around each new one, however many lie between it and the next."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    pixels = torch.from_numpy(crop.of(image).copy()).permute(2, 0, 1)[None].float()
    theta = torch.tensor([[[-1.0 if crop.is_flipped else 1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    grid = affine_grid(theta, [1, *target.shape], align_corners=False)
    sampled = grid_sample(pixels, grid, padding_mode="border", align_corners=False)[0]
    torch.from_numpy(target).copy_(sampled.round_())


def cached(folder: Path) -> Any:
    """Returns the photos, each a class of its own, and their cache, which the first call makes."""
    import numpy as np

    from mlrc_lightning.data.cache import cached_images
    from mlrc_lightning.data.images import ImageFiles

    files = sorted((folder / "photos").iterdir())
    images = ImageFiles(files, list(range(len(files))), folder)
    return images, cached_images(images, np.arange(len(files)), RESIZE, folder / "cache", "trainval")


def make_photos(folder: Path, number: int) -> str:
    """Writes JPEGs of CUB200's size. Returns what they are."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    archive = SHARED / "data" / "grocery_128.tar"
    found: list[Image.Image] = []
    if archive.exists():
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.name.endswith(".jpg") and "/dataset/train/" in m.name]
            for member in members[:: max(1, len(members) // number)][:number]:
                content = tar.extractfile(member)
                assert content is not None
                found.append(Image.open(io.BytesIO(content.read())).convert("RGB"))
    what = "photos, enlarged" if found else "generated images"
    for _ in range(number - len(found)):
        small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        found.append(Image.fromarray(small).resize((171, 128), Image.Resampling.BICUBIC))
    grain = 8.0
    sizes = []
    for position, image in enumerate(found):
        factor = SHORTER_SIDE / min(image.size)
        large = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        noise = random.normal(0, grain, (large.height, large.width, 1))
        pixels = (np.asarray(large) + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"{position:05d}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        sizes.append(path.stat().st_size / 1000)
        # towards the usual size of a file
        grain = float(np.clip(grain * (KILOBYTES / sizes[-1]) ** 0.3, 0.5, 30))
    return f"{number} {what} to {SHORTER_SIDE} px, {statistics.mean(sizes):.0f} kB each"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, folder = arguments.child
        print(json.dumps(measure(side, Path(folder), arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = make_photos(folder / "photos", arguments.images)
        cached(folder)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in _installed_sides()}
        for number in range(arguments.rounds):
            for side in list(runs)[::-1] if number % 2 else list(runs):
                child = ["--threads", str(arguments.threads), "--child", side, str(folder)]
                runs[side].append(in_a_process(__file__, child, arguments.threads))
        figures = _figures(runs, photos, arguments.threads, folder)
    print(f"{photos}; {BATCH} images a batch, {arguments.threads} threads")
    for figure in figures:
        print(_row(figure))
    keep(figures, arguments.json)


def _installed_sides() -> list[str]:
    import importlib.util

    return [side for side in SIDES if side not in NEEDS or importlib.util.find_spec(NEEDS[side]) is not None]


def _figures(
    runs: dict[str, list[dict[str, Any]]], photos: str, num_threads: int, folder: Path
) -> list[dict[str, Any]]:
    import numpy as np

    median = {side: statistics.median(run["seconds"] for run in runs[side]) for side in runs}
    pixels = {path.stem: np.load(path).astype(int) for path in folder.glob("*.npy")}
    differences = {side: np.abs(values - pixels["pil"]) for side, values in pixels.items()}
    return [
        {
            "photos": photos,
            "threads": num_threads,
            "side": side,
            "times as fast as the peer": round(median["peer"] / median[side], 3),
            "microseconds an image": round(1e6 * median[side], 1),
            "extra memory, MB": round(statistics.median(run["extra_megabytes"] for run in runs[side])),
            "mean difference from pil, grey levels": float(differences[side].mean()) if side in differences else None,
            "largest difference from pil, grey levels": int(differences[side].max()) if side in differences else None,
            **({"goals": _goal(side, median)} if side in GOALS else {}),
        }
        for side in runs
    ]


def _goal(side: str, median: dict[str, float]) -> dict[str, bool]:
    return {f"≥ {GOALS[side]} times as fast as the peer": median["peer"] / median[side] >= GOALS[side]}


def _row(figure: dict[str, Any]) -> str:
    mean, largest = (figure[f"{kind} difference from pil, grey levels"] for kind in ("mean", "largest"))
    pixels = "" if mean is None else f"off by {mean:.3f}, at most {largest}"
    return (
        f"{figure['side']:<13} | {figure['times as fast as the peer']:>8.2f}x |"
        f" {figure['microseconds an image']:>8,.1f} us an image | {figure['extra memory, MB']:>4} MB | {pixels}"
    )


if __name__ == "__main__":
    main()
