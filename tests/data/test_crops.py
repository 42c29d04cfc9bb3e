"""Crops of a batch on the training device: Pillow's pixels to the last bit."""

import mlrc_lightning._torchvision  # noqa: F401  # isort: skip
import numpy as np
import pytest
import torch
from PIL import Image

from mlrc_lightning.data import crops as crops_module
from mlrc_lightning.data.augment import Crop, TrainTransform, crop_by_pillow
from mlrc_lightning.data.crops import Crops, crops_of, resize_crops

HEIGHT, WIDTH = 70, 90
PHOTOS = {"scale": (0.16, 1.0), "ratio": (0.75, 1.33), "flip_probability": 0.5}


def images_of(num_images, height=HEIGHT, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)


def cropped(images, boxes, size):
    """Crops whole images, which lie one after the other, as those on the device do."""
    height, width = images.shape[1:3]
    first = np.array([(i * height + box.top) * width + box.left for i, box in enumerate(boxes)])
    pixels = torch.from_numpy(images.reshape(-1, 3))
    return resize_crops(crops_of(boxes, first, np.full(len(boxes), width), size, pixels), pixels)


def by_pillow(images, boxes, size):
    expected = np.empty((len(boxes), 3, size, size), dtype=np.uint8)
    for image, box, target in zip(images, boxes, expected, strict=True):
        crop_by_pillow(image, box, target)
    return torch.from_numpy(expected)


@pytest.mark.parametrize("size", [16, 50, 64, 89, 120])
@pytest.mark.slow
def test_random_crops_are_pillows_to_the_last_bit(size):
    transform = TrainTransform(crop=size, **PHOTOS)
    images = images_of(64)
    for start in range(0, 640, 64):
        boxes = [transform.draw(HEIGHT, WIDTH, np.random.default_rng(seed)) for seed in range(start, start + 64)]
        torch.testing.assert_close(cropped(images, boxes, size), by_pillow(images, boxes, size), rtol=0, atol=0)


@pytest.mark.slow
def test_the_papers_crops_are_pillows_to_the_last_bit():
    transform = TrainTransform(crop=227, **PHOTOS)
    for height, width in [(256, 340), (256, 256), (400, 256), (256, 600)]:
        images = images_of(25, height, width)
        for start in range(0, 200, 25):
            boxes = [transform.draw(height, width, np.random.default_rng(seed)) for seed in range(start, start + 25)]
            assert torch.equal(cropped(images, boxes, 227), by_pillow(images, boxes, 227))


def test_every_shape_of_box_is_pillows():
    """Boxes that grow, shrink or stay along each axis: Pillow takes its two passes in one order or the other."""
    images, size = images_of(1), 40
    for height in (3, 30, 39, 40, 41, 55, 70):
        boxes = [Crop(0, 0, height, width, bool(width % 2)) for width in range(2, 91)]
        repeated = images.repeat(len(boxes), axis=0)
        assert torch.equal(cropped(repeated, boxes, size), by_pillow(repeated, boxes, size)), height


def test_the_two_orders_of_passes_differ_so_that_the_order_matters(monkeypatch):
    boxes = [Crop(0, 0, 70, width, False) for width in range(20, 60)]
    images = images_of(1).repeat(len(boxes), axis=0)
    found = []
    for some_go_down_first in (False, True):
        monkeypatch.setattr(crops_module, "_SOME_GO_DOWN_FIRST", some_go_down_first)
        found.append(cropped(images, boxes, 40))
    difference = (found[0].int() - found[1].int()).abs()
    assert difference.any()
    assert difference.max() == 1


def test_a_box_of_the_size_asked_for_is_copied_and_mirrored():
    images = images_of(2)
    boxes = [Crop(3, 5, 32, 32, False), Crop(3, 5, 32, 32, True)]
    expected = torch.from_numpy(images[:, 3:35, 5:37].copy()).permute(0, 3, 1, 2)
    found = cropped(images, boxes, 32)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1].flip(-1))


def test_halving_an_axis_weighs_four_pixels_one_three_three_one():
    """By hand: a triangle of reach 2 at the centre of two old pixels weighs them 3/8 and their neighbours 1/8."""
    image = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    image[0, :, 2] = 80
    found = cropped(image, [Crop(0, 0, 8, 8, False)], 4)
    assert found[0, 0, 0].tolist() == [11, 30, 0, 0]  # the first has no neighbour on its left: 80 / 7
    assert found.is_contiguous()
    assert found.dtype == torch.uint8


def test_a_batch_is_its_images_one_by_one():
    transform = TrainTransform(crop=48, **PHOTOS)
    boxes = [transform.draw(HEIGHT, WIDTH, np.random.default_rng(seed)) for seed in range(12)]
    images = images_of(12)
    singly = [cropped(images[i : i + 1], boxes[i : i + 1], 48) for i in range(12)]
    assert torch.equal(cropped(images, boxes, 48), torch.cat(singly))


def test_nothing_outside_the_box_is_seen():
    box = Crop(10, 20, 30, 25, False)
    one, other = images_of(1), images_of(1, seed=1)
    other[0, 10:40, 20:45] = one[0, 10:40, 20:45]
    assert torch.equal(cropped(one, [box], 16), cropped(other, [box], 16))


def test_a_photo_differs_by_at_most_one_grey_level_from_exact_arithmetic():
    """Against two matrix products in float64 that round once: Pillow rounds after each axis."""
    image = np.asarray(Image.fromarray(images_of(1)[0]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    box = Crop(4, 6, 61, 80, False)
    crops = crops_of([box], np.array([4 * WIDTH + 6]), np.array([WIDTH]), 32, torch.empty((0, 3), dtype=torch.uint8))
    found = resize_crops(crops, torch.from_numpy(image.reshape(-1, 3).copy()))[0].double().numpy()

    def matrix(length):
        scale = length / 32
        centers = (np.arange(32)[:, None] + 0.5) * scale
        weights = np.clip(1 - np.abs(np.arange(length) + 0.5 - centers) / scale, 0, None)
        return weights / weights.sum(axis=1, keepdims=True)

    part = image[4:65, 6:86].astype(float)
    exact = np.einsum("iy,yxc,jx->cij", matrix(61), part, matrix(80))
    assert np.abs(found - exact).max() < 1.0
    assert isinstance(crops, Crops)
