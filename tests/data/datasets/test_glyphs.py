"""The embedded dataset: real, deterministic, and no two classes that look the same."""

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mlrc_lightning.data.datasets.glyphs import CHARACTERS, TYPEFACES, Glyphs, font_folder
from mlrc_lightning.errors import ConfigError

SIZE = 24
LARGEST_OVERLAP = 0.82


def boxed(font, character):
    """The character alone, scaled by its longer side: what is left once size and place are taken away."""
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    scale = SIZE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    box = Image.new("L", (SIZE, SIZE))
    box.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(box, dtype=np.float32).ravel() / 255


@pytest.mark.slow
def test_no_two_characters_look_alike_in_any_typeface():
    for typeface in TYPEFACES:
        font = ImageFont.truetype(str(font_folder() / f"{typeface}.ttf"), 64)
        boxes = np.stack([boxed(font, character) for character in CHARACTERS])
        both = np.stack([np.minimum(box, boxes).sum(axis=1) for box in boxes])
        overlap = both / (boxes.sum(axis=1)[:, None] + boxes.sum(axis=1)[None, :] - both)
        np.fill_diagonal(overlap, 0)
        one, other = np.unravel_index(overlap.argmax(), overlap.shape)
        assert overlap.max() <= LARGEST_OVERLAP, f"{CHARACTERS[one]} and {CHARACTERS[other]} in {typeface}"


@pytest.mark.parametrize(
    ("chosen", "lookalikes"), [("A", "ΑА"), ("C", "С"), ("c", "с"), ("e", "е"), ("|", "l"), ("0", "OΟО")]
)
def test_lookalikes_of_a_chosen_character_are_left_out(chosen, lookalikes):
    assert chosen in CHARACTERS
    assert not set(lookalikes) & set(CHARACTERS)


def test_characters_differ_and_have_names():
    assert len(set(CHARACTERS)) == len(CHARACTERS) >= 300
    assert all(unicodedata.name(character) for character in CHARACTERS)


def test_no_two_images_of_the_default_are_the_same():
    glyphs = Glyphs(num_classes=40, images_per_class=14, size=32, seed=0)
    images = {np.asarray(glyphs.read(index)).tobytes() for index in range(len(glyphs.labels))}
    assert len(images) == 40 * 14


def test_an_image_is_a_function_of_seed_character_and_number():
    few, many = (Glyphs(num_classes=n, images_per_class=14, size=32, seed=3) for n in (5, 50))
    assert few.read(30).tobytes() == many.read(30).tobytes()
    assert few.read(30).tobytes() != Glyphs(num_classes=5, images_per_class=14, size=32, seed=4).read(30).tobytes()


def test_every_image_shows_a_character_inside_the_frame():
    glyphs = Glyphs(num_classes=60, images_per_class=3, size=32, seed=0)
    for index in range(len(glyphs.labels)):
        image = np.asarray(glyphs.read(index))
        assert image.shape == (32, 32, 3)
        assert image.min() < 160, glyphs.describe(index)
        assert image.mean() > 100, glyphs.describe(index)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": 5000}, {"images_per_class": 0}, {"size": 4}])
def test_counts_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match="dataset.images"):
        Glyphs(**{"num_classes": 10, "images_per_class": 4, "size": 32, "seed": 0} | arguments)


def test_the_fingerprint_follows_the_arguments():
    indices = np.arange(8)
    base = Glyphs(10, 4, 32, 0)
    assert base.fingerprint(indices) == Glyphs(10, 4, 32, 0).fingerprint(indices)
    assert base.fingerprint(indices) != Glyphs(10, 4, 32, 1).fingerprint(indices)
    assert base.fingerprint(indices) != base.fingerprint(indices + 1)
