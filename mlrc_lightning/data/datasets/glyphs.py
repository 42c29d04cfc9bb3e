"""Characters drawn from the typefaces that matplotlib ships: real images with nothing to download."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mlrc_lightning.errors import ConfigError, DatasetError

TYPEFACES = (
    "DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral",
    "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol",
    "DejaVuSans-Oblique", "DejaVuSerif-Italic", "DejaVuSansMono-Oblique", "STIXGeneralItalic",
    "DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "DejaVuSansMono-BoldOblique", "STIXGeneralBolIta",
)  # fmt: skip

# Letters, digits and signs that all typefaces draw, in code point order. Of characters that look alike once size is
# taken away (A and Greek Alpha, c and C, l and I: their boxes overlap by more than 0.82 in some typeface) only the
# first is here. tests/data/datasets/test_glyphs.py repeats that comparison.
CHARACTERS = (
    "$+0123456789<=>ABCDEGHIJKLMNPQRSTUVWXYZabcdefghjkmnopqrstuwxyz|~¢£¤¥¦©ª¬®°±"
    "²³µ¹º¼½¾ÀÆÇÈÌÑÒ×ØÙÝÞßàåæçèìíîïðñò÷øùýþāĄąĆćĉĎēĘęĜĝĢĤĥĮįĲĳĴĵĶķĸĹĺĻļľŀŅņŉŊŋōŒ"
    "ŔŕŖŗŚśŞşŢţŤťūůŲųŴŵŹźƈƐƒƕƛƠƪƭƯưƺƾǁǂǼǽǾǿɐɑɒɔɕɖɗɘəɚɝɞɟɠɣɤɧɨɩɬɭɮɯɰɱɲɴɷɸɹɺɻɽɾɿʀʁ"
    "ʆʇʈʊʋʌʍʎʏʐʑʒʔʕʖʗʚʛʞʣʤʦʧʨΈΉΊΎΏΐΓΔΞΣΦΨάέήΰβζνξςτφχωϋώϐϑϒϘϙϚϞϟϠϡϰϱЂЃЉЊЋЌЎЏДЖЙЛ"
    "ЧШЩЪЫЬЭЮЯбвгдзлфцчщыьюяљњќѣҐґ€№™"
)

_DRAWING_VERSION = 1
_CANVAS = 4  # characters are drawn so many times larger and shrunk, for smooth edges


class Glyphs:
    """A class a character, an image one typeface, size, shift and rotation.

    Every image is a function of (seed, character, number) alone, so that nothing needs storing and no image of one
    class is drawn to get another.

    Args:
        num_classes: How many characters, from the start of `CHARACTERS`.
        images_per_class: Images of each; image k is set in typeface k modulo 16.
        size: Width and height in pixels.
        seed: Root of the random sizes, shifts and rotations.

    Raises:
        ConfigError: A count is out of range.
        DatasetError: matplotlib's fonts are not installed.
    """

    def __init__(self, num_classes: int, images_per_class: int, size: int, seed: int) -> None:
        if not 1 <= num_classes <= len(CHARACTERS):
            raise ConfigError(f"dataset.images.num_classes={num_classes}: expected 1 to {len(CHARACTERS)}.")
        if images_per_class < 1 or size < 8:
            raise ConfigError(
                f"dataset.images: expected images_per_class >= 1 and size >= 8, found {images_per_class} and {size}."
            )
        self.labels: NDArray[np.int64] = np.repeat(np.arange(num_classes, dtype=np.int64), images_per_class)
        self.class_names = [f"U+{ord(character):04X} {character}" for character in CHARACTERS[:num_classes]]
        self._images_per_class = images_per_class
        self._size = size
        self._seed = seed
        font_folder()

    def read(self, index: int) -> Image.Image:
        """Draws one image: black on white, RGB, size x size."""
        character = CHARACTERS[self.labels[index]]
        number = index % self._images_per_class
        random = np.random.default_rng([self._seed, ord(character), number])
        canvas = self._size * _CANVAS
        scale, angle = random.uniform(0.55, 0.8), random.uniform(-12, 12)
        shift = random.uniform(-0.06, 0.06, size=2) * canvas
        font = _font(TYPEFACES[number % len(TYPEFACES)], round(scale * canvas))
        left, top, right, bottom = font.getbbox(character)
        # by the longer side, so that a comma is as large as an M
        fit = scale * canvas / max(right - left, bottom - top)
        font = _font(TYPEFACES[number % len(TYPEFACES)], max(4, round(fit * scale * canvas)))
        left, top, right, bottom = font.getbbox(character)
        image = Image.new("L", (canvas, canvas), 255)
        origin = ((canvas - right - left) / 2 + shift[0], (canvas - bottom - top) / 2 + shift[1])
        ImageDraw.Draw(image).text(origin, character, fill=0, font=font)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=255)
        return image.resize((self._size, self._size), Image.Resampling.BOX).convert("RGB")

    def describe(self, index: int) -> str:
        """Returns the character's code point and name, and the typeface."""
        character = CHARACTERS[self.labels[index]]
        typeface = TYPEFACES[index % self._images_per_class % len(TYPEFACES)]
        return f"U+{ord(character):04X} {unicodedata.name(character)} in {typeface}"

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Returns a digest of what decides the pixels: the arguments, the characters, the fonts' sizes on disk."""
        fonts = [(name, (font_folder() / f"{name}.ttf").stat().st_size) for name in TYPEFACES]
        entry = [
            _DRAWING_VERSION,
            self._images_per_class,
            self._size,
            self._seed,
            CHARACTERS,
            fonts,
            indices.tolist(),
        ]
        return hashlib.sha256(json.dumps(entry).encode()).hexdigest()


@cache
def font_folder() -> Path:
    """Returns the folder of matplotlib's fonts without importing matplotlib.

    Raises:
        DatasetError: matplotlib or one of the typefaces is missing.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise DatasetError(
            "glyphs: expected matplotlib, whose fonts it draws with, found none: pip install matplotlib."
        )
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    missing = [name for name in TYPEFACES if not (folder / f"{name}.ttf").is_file()]
    if missing:
        raise DatasetError(f"glyphs: expected {missing[0]}.ttf in {folder}, found none. Reinstall matplotlib.")
    return folder


@cache
def _font(typeface: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / f"{typeface}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)
