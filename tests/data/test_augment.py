"""Crops and resizing against torchvision's own."""

import mlrc_lightning._torchvision  # noqa: F401  # isort: skip
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import functional

from mlrc_lightning.data.augment import TrainTransform, center_crop, crop_by_pillow, crop_by_torch
from mlrc_lightning.data.cache import cached_images, resize_shorter_side
from mlrc_lightning.data.images import ImageFiles
from tests.conftest import SHARED

PHOTOS = {"scale": (0.16, 1.0), "ratio": (0.75, 1.33)}


def photo(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (257, 500), (100, 640), (256, 300)])
def test_resizing_is_bit_equal_to_torchvisions(size):
    image = photo(*size)
    expected = np.asarray(transforms.Resize(256)(image))
    np.testing.assert_array_equal(np.asarray(resize_shorter_side(image, 256)), expected)


@pytest.mark.parametrize("size", [(300, 256), (256, 301), (256, 256), (257, 400)])
def test_the_evaluation_crop_is_torchvisions(size):
    image = photo(*size)
    np.testing.assert_array_equal(center_crop(np.asarray(image), 227), np.asarray(transforms.CenterCrop(227)(image)))


def test_a_training_crop_is_bit_equal_to_torchvisions_resized_crop_of_the_same_box():
    image = np.asarray(photo(310, 256))
    transform = TrainTransform(crop=227, flip_probability=0.0, **PHOTOS)
    for seed in range(20):
        top, left, height, width = transform.box(256, 310, np.random.default_rng(seed))
        ours = transform(image, np.random.default_rng(seed))
        theirs = functional.resized_crop(Image.fromarray(image), top, left, height, width, [227, 227])
        np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize(("height", "width"), [(256, 340), (500, 256), (256, 1200)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    n = 4000
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    transform = TrainTransform(crop=227, flip_probability=0.5, **PHOTOS)
    ours = np.array([transform.box(height, width, random) for _ in range(n)])
    image = torch.empty(3, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, **PHOTOS) for _ in range(n)])
    for name, a, b in [
        ("top", ours[:, 0], theirs[:, 0]),
        ("left", ours[:, 1], theirs[:, 1]),
        ("area", ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]),
        ("ratio", ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]),
    ]:
        assert ks_2samp(a, b).pvalue > 0.001, name
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.slow
def test_the_papers_boxes_are_distributed_as_the_reference_definition_s():
    """Area, ratio and position at n = 100,000, on a photo that is wider than high, as most are."""
    n, height, width = 100_000, 256, 340
    random = np.random.default_rng(1)
    torch.manual_seed(1)
    transform = TrainTransform(crop=227, flip_probability=0.5, **PHOTOS)
    ours = np.array([transform.box(height, width, random) for _ in range(n)])
    image = torch.empty(3, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, **PHOTOS) for _ in range(n)])
    statistics = {
        "area": lambda box: box[:, 2] * box[:, 3] / (height * width),
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "vertical centre": lambda box: box[:, 0] + box[:, 2] / 2,
        "horizontal centre": lambda box: box[:, 1] + box[:, 3] / 2,
    }
    p_values = {name: ks_2samp(of(ours), of(theirs)).pvalue for name, of in statistics.items()}
    assert min(p_values.values()) > 0.01, p_values
    # it would see a slightly wider ratio, or a slightly larger area
    for change in ({"ratio": (0.75, 1.4)}, {"scale": (0.17, 1.0)}):
        other = TrainTransform(crop=227, flip_probability=0.5, **{**PHOTOS, **change})
        boxes = np.array([other.box(height, width, random) for _ in range(n)])
        assert min(ks_2samp(of(boxes), of(theirs)).pvalue for of in statistics.values()) < 1e-6, change


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_an_image_too_narrow_for_any_box_gets_the_widest_centre_one(height, width):
    transform = TrainTransform(crop=8, scale=(0.9, 1.0), ratio=(0.75, 1.33), flip_probability=0.0)
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], [0.75, 1.33])
    assert transform.box(height, width, np.random.default_rng(0)) == tuple(expected)


def test_the_flip_happens_as_often_as_asked():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, 16:] = 255
    transform = TrainTransform(crop=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=0.25)
    flipped = [transform(image, np.random.default_rng(seed))[0, 0, 0] == 255 for seed in range(2000)]
    assert 0.21 < np.mean(flipped) < 0.29


def test_the_same_seed_is_the_same_crop():
    image = np.asarray(photo(64, 48))
    transform = TrainTransform(crop=32, flip_probability=0.5, **PHOTOS)
    one, other = (transform(image, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def drawn(image, seed, crop=227):
    transform = TrainTransform(crop=crop, flip_probability=0.5, **PHOTOS)
    return transform, transform.draw(*image.shape[:2], np.random.default_rng(seed))


def reference(file, seed, resize=256, crop=227):
    """The paper's transform on a file, uncached, by torchvision: Resize, the crop of our box, the flip."""
    with Image.open(file) as opened:
        image = transforms.Resize(resize)(opened.convert("RGB"))
    transform, box = drawn(np.asarray(image), seed, crop)
    pixels = functional.resized_crop(image, *box[:4], [crop, crop])
    pixels = functional.hflip(pixels) if box.is_flipped else pixels
    return transform, box, np.asarray(pixels)


def check_against_the_uncached_transform(files, folder, seeds):
    """Caches the files and reads crops of them by the path that training takes; returns how many there were."""
    images = ImageFiles(files, list(range(len(files))), files[0].parent)
    cache = cached_images(images, np.arange(len(files)), 256, folder, "trainval")
    pixels, target, flips = cache.open(), np.empty((3, 227, 227), dtype=np.uint8), set()
    for index, file in enumerate(files):
        for seed in seeds:
            transform, box, expected = reference(file, seed)
            image = cache.image(pixels, index)
            crop_by_pillow(image, box, target)
            assert target.tobytes() == expected.transpose(2, 0, 1).tobytes(), (file, seed)
            assert transform(image, np.random.default_rng(seed)).tobytes() == expected.tobytes()
            flips.add(box.is_flipped)
    assert flips == {False, True}
    return len(files)


def smooth(width, height, mode, seed):
    """What photos are like: smooth shapes with an edge and some grain."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    random = np.random.default_rng(seed)
    channels = [127 + 90 * np.sin(a * x + b * y + c) for a, b, c in random.uniform(2, 9, (len(mode), 3))]
    pixels = np.stack(channels, axis=-1) + 40 * (x > y)[..., None] + random.normal(0, 6, (height, width, 1))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels).convert(mode)


@pytest.mark.slow
def test_training_reads_the_pixels_of_the_papers_uncached_transform(tmp_path):
    files = []
    for number, (size, mode, kind) in enumerate(
        [
            ((500, 375), "RGB", "jpg"), ((375, 500), "RGB", "jpg"), ((120, 90), "RGB", "jpg"),
            ((256, 256), "RGB", "jpg"),
            ((300, 301), "L", "jpg"), ((410, 260), "L", "png"), ((333, 200), "RGB", "png"), ((200, 700), "RGB", "png"),
        ]
    ):  # fmt: skip
        files.append(tmp_path / f"{number}.{kind}")
        smooth(*size, mode, number).save(files[-1])
    files += [tmp_path / "cmyk.jpg", tmp_path / "alpha.png", tmp_path / "palette.png"]
    smooth(310, 280, "RGB", 20).convert("CMYK").save(files[-3])
    smooth(310, 280, "RGB", 21).convert("RGBA").save(files[-2])
    smooth(310, 280, "RGB", 22).quantize(64).save(files[-1])
    assert check_against_the_uncached_transform(files, tmp_path / "cache", range(12)) == 11


@pytest.mark.real_data
def test_training_reads_the_pixels_of_the_papers_uncached_transform_of_photos(tmp_path):
    with tarfile.open(SHARED / "data" / "grocery_128.tar") as archive:
        members = [m for m in archive if m.name.endswith(".jpg") and "/dataset/test/" in m.name][::25]
        archive.extractall(tmp_path, members, filter="data")
    files = sorted(tmp_path.rglob("*.jpg"))
    assert check_against_the_uncached_transform(files, tmp_path / "cache", range(4)) > 50


@pytest.mark.slow
def test_torch_takes_the_same_boxes_and_flips_and_pixels_but_for_rounding():
    wrong, largest, kinds = [], 0, set()
    for seed in range(60):
        image = np.asarray(smooth(340, 256, "RGB", seed % 5))
        _, box = drawn(image, seed)
        ours, pillows = np.empty((2, 3, 227, 227), dtype=np.uint8)
        crop_by_torch(image, box, ours)
        crop_by_pillow(image, box, pillows)
        difference = np.abs(ours.astype(int) - pillows)
        wrong.append((difference > 0).mean())
        largest = max(largest, difference.max())
        kinds.add((box.height > 227, box.width > 227, box.is_flipped))
    assert len(kinds) >= 7
    assert largest == 1
    assert np.mean(wrong) < 0.05
