"""Any image that Pillow opens as 8 bits of red, green and blue."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

_DEEP_FORMATS = ("PNG", "TIFF", "JPEG2000")
"""Formats of which Pillow's 16-bit modes hold what the file says: unsigned numbers."""
_SIGNED = 2


def to_rgb(image: Image.Image, exif: str) -> Image.Image:
    """Returns an opened image in RGB, as torchvision's loaders do. Deeper grey ones are scaled to 8 bits.

    Of more than 8 bits the highest 8 stay, in grey images as in coloured ones, of which Pillow itself keeps those.
    Transparency and colour profiles are left out, and of several frames the first is read.

    Args:
        image: As `Image.open` returns it.
        exif: `apply` rotates it as its EXIF orientation says; `ignore` leaves it as it is stored.

    Raises:
        ValueError: The range of its values is not known (modes I and F), or the mode has no RGB.
    """
    rgb = _scaled(image).convert("RGB")
    # a tag of the opened image, which conversions keep where they can
    return _rotated(rgb, image) if exif == "apply" else rgb


def _scaled(image: Image.Image) -> Image.Image:
    depth = 8
    if isinstance(image, TiffImageFile) and image.tag_v2.get(SAMPLEFORMAT, (1,))[0] == _SIGNED:
        raise ValueError(f"mode {image.mode} with signed values, of which it is not known which are black and white")
    if image.mode.startswith("I;16") and image.format in _DEEP_FORMATS:
        depth = image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        depth = 16  # Pillow scales the values of PPM to 16 bits
    elif image.mode.startswith(("I", "F")):
        raise ValueError(
            f"mode {image.mode} of {image.format}, of which it is not known which values are black and white"
        )
    if depth == 8:
        return image
    values = (np.asarray(image) >> (depth - 8)).clip(0, 255).astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        values = 255 - values  # white is 0, which Pillow minds at 8 bits alone
    return Image.fromarray(values)


def _rotated(rgb: Image.Image, opened: Image.Image) -> Image.Image:
    exif = opened.getexif()  # of TIFF without an orientation: Pillow has rotated those
    rgb.getexif()[274] = exif.get(274, 1)
    return ImageOps.exif_transpose(rgb)
