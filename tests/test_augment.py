"""Crops and resizing against torchvision's own."""

import mlrc_lightning.torchvision_import  # noqa: F401  # isort: skip
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import functional

from mlrc_lightning.augment import TrainTransform, center_crop
from mlrc_lightning.datasets.cache import resize_shorter_side

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
