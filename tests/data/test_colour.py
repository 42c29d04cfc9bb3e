"""Images of every depth and mode as 8-bit RGB."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.data.colour import to_rgb
from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.errors import ConfigError, ImageError
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.settings.compose import trial_settings

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def stored(image, file_format, **arguments):
    """Writes an image and opens it again."""
    file = io.BytesIO()
    image.save(file, file_format, **arguments)
    return Image.open(io.BytesIO(file.getvalue()))


def rgb(image, exif="ignore"):
    found = np.asarray(to_rgb(image, exif))
    assert found.dtype == np.uint8
    return found


@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_16_bit_grey_is_the_8_bit_image(file_format, factor):
    arguments = {"irreversible": False} if file_format == "JPEG2000" else {}
    image = stored(Image.fromarray(GREY.astype(np.uint16) * factor), file_format, **arguments)
    assert image.mode in ("I", "I;16")
    np.testing.assert_array_equal(rgb(image), np.stack([GREY] * 3, axis=-1))


def tiff(values, bits, *, photometric=1, sample_format=1, byte_order="<"):
    """An uncompressed TIFF of one strip, written by hand: Pillow writes few of the kinds that it reads."""
    height, width = values.shape
    order = {"<": "little", ">": "big"}[byte_order]
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = b"".join(int(number).to_bytes(3, "big") for number in packed)
    else:
        data = values.astype(f"{byte_order}{'i' if sample_format == 2 else 'u'}{bits // 8}").tobytes()
    tags = [
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
        (279, len(data)), (339, sample_format),
    ]  # fmt: skip
    head = (b"II" if order == "little" else b"MM") + (42).to_bytes(2, order) + (8 + len(data)).to_bytes(4, order)
    entries = b""
    for tag, value in tags:
        kind = 4 if tag in (273, 279) else 3
        padded = value.to_bytes(4, order) if kind == 4 else value.to_bytes(2, order) + b"\0\0"
        entries += tag.to_bytes(2, order) + kind.to_bytes(2, order) + (1).to_bytes(4, order) + padded
    return Image.open(io.BytesIO(head + data + len(tags).to_bytes(2, order) + entries + b"\0\0\0\0"))


@pytest.mark.parametrize(
    ("values", "bits", "options"),
    [
        (GREY.astype(np.uint16) * 257, 16, {"byte_order": ">"}),
        (GREY.astype(np.uint16) * 257, 16, {"byte_order": "<"}),
        (GREY.astype(np.uint16) * 16 + 15, 12, {}),
        (65535 - GREY.astype(np.uint16) * 257, 16, {"photometric": 0}),
    ],
    ids=["big endian", "little endian", "12 bits", "white is 0"],
)
def test_deep_tiff_is_the_8_bit_image(values, bits, options):
    image = tiff(values, bits, **options)
    assert image.mode.startswith("I;16")
    np.testing.assert_array_equal(rgb(image)[..., 0], GREY)


def fits(values):
    """A FITS file, whose 16-bit numbers are signed; Pillow gives them the unsigned mode."""
    cards = ["SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 16", "NAXIS2  = 16", "END"]
    header = "".join(f"{card:<80}" for card in cards).ljust(2880).encode()
    return Image.open(io.BytesIO(header + values.astype(">i2").tobytes().ljust(2880, b"\0")))


@pytest.mark.parametrize(
    "image",
    [
        tiff(GREY, 32), tiff(GREY, 32, sample_format=2), tiff(GREY, 16, sample_format=2),
        tiff(GREY, 8, sample_format=2),
        stored(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        fits(GREY),
    ],
    ids=["I 32", "I signed 32", "I signed 16", "L signed 8", "F", "I;16 of FITS"],
)  # fmt: skip
def test_values_of_unknown_range_are_refused(image):
    with pytest.raises(ValueError, match=f"mode {image.mode} .*not known which"):
        to_rgb(image, "ignore")


def test_a_refused_image_is_named_with_its_mode(image_folder):
    path = image_folder / "class_00" / "0.jpg"
    Image.fromarray(GREY.astype(np.float32)).save(path, "TIFF")
    images = ImageFolder(str(image_folder))
    with pytest.raises(ImageError, match=r"class_00/0.jpg: .*mode F of TIFF"):
        images.read(images.paths.index(path))


def test_colour_of_16_bits_keeps_its_high_byte():
    """A PNG of 16 bits a channel, by hand: Pillow reads and does not write it."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for colour_type, channels in ((2, 3), (4, 2), (6, 4)):
        values = np.repeat(GREY[..., None].astype(">u2") * 257, channels, axis=2)
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0)
        data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        image = Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + data))
        np.testing.assert_array_equal(rgb(image), np.stack([GREY] * 3, axis=-1))


def test_transparency_is_left_out_as_torchvision_does():
    clear = Image.fromarray(np.dstack([GREY, GREY, GREY, np.zeros_like(GREY)]))
    np.testing.assert_array_equal(rgb(stored(clear, "PNG"))[..., 0], GREY)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_on_request(file_format, orientation):
    image = Image.new("RGB", (16, 8))
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[274] = orientation
    arguments = {"lossless": True} if file_format == "WEBP" else {}
    as_stored = rgb(stored(image, file_format, exif=exif, **arguments))
    assert as_stored.shape == (8, 16, 3)
    turned = rgb(stored(image, file_format, exif=exif, **arguments), "apply")
    expected = {
        1: as_stored, 2: as_stored[:, ::-1], 3: as_stored[::-1, ::-1], 4: as_stored[::-1],
        5: as_stored.swapaxes(0, 1), 6: as_stored.swapaxes(0, 1)[:, ::-1],
        7: as_stored.swapaxes(0, 1)[::-1, ::-1], 8: as_stored.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    np.testing.assert_array_equal(turned, expected[orientation])


def test_exif_is_part_of_the_identity(compose_config):
    usual, explicit, applied = (
        compose_config("dataset=image_folder", "trunk.name=resnet18", *more)
        for more in ([], ["dataset.exif=ignore"], ["dataset.exif=apply"])
    )
    assert usual.protocol == explicit.protocol != applied.protocol
    assert usual.run_set == explicit.run_set != applied.run_set
    assert compose_config("loss=triplet").run_set == compose_config("loss=triplet", "dataset.exif=ignore").run_set


@pytest.mark.slow
def test_exif_reaches_the_pixels_and_has_a_cache_of_its_own(settings, compose_config, image_folder, tmp_path):
    for path in image_folder.rglob("*.jpg"):
        exif = Image.Exif()
        exif[274] = 6
        Image.open(path).save(path, exif=exif)
    common = ["dataset=image_folder", f"dataset.images.root={image_folder}", "trunk=small_cnn", "fold=0"]
    common += ["transform.resize=32", "transform.crop=32", f"data_root={tmp_path / 'data'}"]

    def data(*more):
        return TrialData(trial_settings(compose_config(*common, *more), is_sweep_job=True))

    stored_as, turned = data(), data("dataset.exif=apply")
    np.testing.assert_array_equal(stored_as.trainval.cache.shapes[:, ::-1], turned.trainval.cache.shapes)
    assert stored_as.trainval.cache.file != turned.trainval.cache.file
    assert data().trainval.cache.file == stored_as.trainval.cache.file
    glyphs = settings("dataset=glyphs")
    with pytest.raises(ConfigError, match="dataset.exif=apply: expected a dataset of image files"):
        TrialData(dataclasses.replace(glyphs, dataset=dataclasses.replace(glyphs.dataset, exif="apply")))
    with pytest.raises(ConfigError, match="dataset.exif=aply: unknown. Did you mean apply"):
        settings("dataset.exif=aply")
