"""Pictures from outside: each file is made here, and its right answer computed without Pillow."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, ImageCms

from editbook.errors import EditbookError
from editbook.images import (
    MAX_PIXELS,
    ImageWarning,
    as_image,
    crop_box,
    fit,
    image_batches,
    picture_list,
    read_image,
    save_image,
)

# A warning that a test does not expect is a failure.
pytestmark = pytest.mark.filterwarnings("error")


def photo(width: int = 24, height: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write(folder: Path, data: bytes, name: str = "picture.png") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    values: np.ndarray, bits: int, colour_type: int, extra: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG written chunk by chunk; colour types: 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""
    width, height = size or (values.shape[1], values.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in values)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def refused(call: Any, *words: str) -> str:
    """The message of the EditbookError that `call` raises: one line, with these words in it."""
    with pytest.raises(EditbookError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


class TestPlainFiles:
    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_lossless_formats_come_back_exactly(self, tmp_path, format):
        options = {"lossless": True} if format == "WEBP" else {}
        image = read_image(write(tmp_path, encode(photo(), format, **options)))
        assert image.mode == "RGB"
        np.testing.assert_array_equal(image, photo())

    def test_jpeg_is_close(self, tmp_path):
        smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], (32, 1, 3))
        image = read_image(write(tmp_path, encode(smooth, "JPEG", quality=95), "a.jpg"))
        assert np.abs(np.asarray(image, int) - smooth).max() <= 6

    def test_content_counts_and_not_the_suffix(self, tmp_path):
        path = write(tmp_path, encode(photo()), "really-a-png.jpg")
        np.testing.assert_array_equal(read_image(str(path)), photo())

    @pytest.mark.parametrize("mode", ["1", "L", "P"])
    def test_grey_and_palette(self, tmp_path, mode):
        source = Image.fromarray(photo()).convert(mode)
        image = read_image(write(tmp_path, encode(source)))
        assert image.mode == "RGB"
        np.testing.assert_array_equal(image, source.convert("RGB"))

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_metadata_does_not_travel_on(self, tmp_path, format):
        exif = Image.Exif()
        exif[0x010E] = "secret place"
        data = encode(photo(), format, exif=exif, icc_profile=srgb_profile())
        assert b"secret place" in data
        saved = save_image(read_image(write(tmp_path, data)), tmp_path / "saved.png").read_bytes()
        assert b"secret place" not in saved
        assert b"iCCP" not in saved


class TestOrientation:
    # What a viewer has to do with the stored pixels, for each value of the EXIF tag.
    UPRIGHT: ClassVar = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_every_value_is_applied(self, tmp_path, format, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if format == "WEBP" else {}
        image = read_image(write(tmp_path, encode(photo(), format, exif=exif, **options)))
        np.testing.assert_array_equal(image, self.UPRIGHT[orientation](photo()))

    def test_jpeg_of_a_phone_held_upright(self, tmp_path):
        stored = np.zeros((16, 32, 3), np.uint8)
        stored[:, :8] = 255  # white at the left edge of the sensor is the top of the picture
        exif = Image.Exif()
        exif[0x0112] = 6
        image = np.asarray(read_image(write(tmp_path, encode(stored, "JPEG", exif=exif))))
        assert image.shape == (32, 16, 3)
        assert image[:8].mean() > 240
        assert image[8:].mean() < 15

    def test_sixteen_bits_are_turned_as_well(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        grey = np.arange(12).reshape(3, 4) * 257
        image = read_image(write(tmp_path, png(grey, 16, 0, chunk(b"eXIf", exif.tobytes()[6:]))))
        np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rot90(grey // 257, -1))

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_damaged_exif_costs_the_orientation_only(self, tmp_path, format):
        options = {"lossless": True} if format == "WEBP" else {}
        path = write(tmp_path, encode(photo(), format, exif=b"Exif\0\0garbage", **options))
        with pytest.warns(ImageWarning, match=r"picture\.png.*EXIF"):
            image = read_image(path)
        np.testing.assert_array_equal(image, photo())


class TestTransparency:
    def read(self, folder: Path, data: bytes) -> np.ndarray:
        with pytest.warns(ImageWarning, match=r"picture\.png.*laid over white") as caught:
            image = read_image(write(folder, data))
        assert len(caught) == 1
        assert image.mode == "RGB"
        return np.asarray(image)

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_alpha_is_composited_over_white(self, tmp_path, format):
        alpha = np.random.default_rng(1).integers(0, 256, (16, 24, 1), dtype=np.uint8)
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        image = self.read(tmp_path, encode(np.concatenate([photo(), alpha], -1), format, **options))
        weight = alpha / 255
        assert np.abs(image - (photo() * weight + 255 * (1 - weight))).max() <= 1

    def test_transparent_red_is_white_and_not_red(self, tmp_path):
        assert (self.read(tmp_path, encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))) == 255).all()

    def test_grey_with_alpha(self, tmp_path):
        image = self.read(tmp_path, encode(Image.new("LA", (4, 4), (0, 51))))
        assert (image == 204).all()

    def test_palette_with_one_transparent_entry(self, tmp_path):
        source = Image.new("P", (2, 1))
        source.putpalette([10, 20, 30, 40, 50, 60])
        source.putpixel((1, 0), 1)
        image = self.read(tmp_path, encode(source, transparency=0))
        assert image.tolist() == [[[255, 255, 255], [40, 50, 60]]]

    def test_palette_with_half_transparent_entries(self, tmp_path):
        source = Image.new("P", (2, 1))
        source.putpalette([0, 0, 0, 40, 50, 60])
        source.putpixel((1, 0), 1)
        image = self.read(tmp_path, encode(source, transparency=bytes([51, 255])))
        assert image.tolist() == [[[204, 204, 204], [40, 50, 60]]]

    @pytest.mark.parametrize(
        ("values", "bits", "colour_type", "key", "left"),
        [
            ([[7, 9]], 8, 0, (7,), [9, 9, 9]),
            ([[7 * 257, 9 * 257]], 16, 0, (7 * 257,), [9, 9, 9]),
            ([[[1, 2, 3], [4, 5, 6]]], 8, 2, (1, 2, 3), [4, 5, 6]),
        ],
        ids=["grey", "16-bit grey", "RGB"],
    )
    def test_one_colour_marked_as_transparent(self, tmp_path, values, bits, colour_type, key, left):
        marked = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
        image = self.read(tmp_path, png(np.array(values), bits, colour_type, marked))
        assert image.tolist() == [[[255, 255, 255], left]]

    def test_sixteen_bit_rgba(self, tmp_path):
        image = self.read(tmp_path, png(np.array([[[0, 0, 0, 0], [65535, 0, 0, 65535]]]), 16, 6))
        assert image.tolist() == [[[255, 255, 255], [255, 0, 0]]]

    def test_an_opaque_alpha_channel_is_nothing_to_warn_of(self, tmp_path):
        image = read_image(write(tmp_path, encode(Image.fromarray(photo()).convert("RGBA"))))
        np.testing.assert_array_equal(image, photo())


class TestSixteenBits:
    def test_grey_ramp_is_scaled_and_not_clipped(self, tmp_path):
        ramp = np.arange(0, 65536, 13).reshape(1, -1)
        image = np.asarray(read_image(write(tmp_path, png(ramp, 16, 0))))
        np.testing.assert_array_equal(image[..., 0], np.round(ramp / 257))
        np.testing.assert_array_equal(image[..., 0], image[..., 2])

    def test_rgb_ramp(self, tmp_path):
        ramp = np.linspace(0, 65535, 300).astype(int)
        values = np.stack([ramp, ramp[::-1], ramp // 2], -1)[None]
        image = np.asarray(read_image(write(tmp_path, png(values, 16, 2))), int)
        assert np.abs(image - values / 257).max() <= 1
        assert image[0, -1, 0] == 255

    def test_thirty_two_bit_integers_in_memory(self):
        values = np.array([[0, 32768, 65535]], np.int32)
        assert np.asarray(as_image(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255]
        refused(lambda: as_image(Image.fromarray(values * 2)), "131070", "65535")
        refused(lambda: as_image(Image.fromarray(values - 1)), "-1")


# --- Colour: minimal ICC profiles, written here, and the textbook way from the connection space (D50) to sRGB.

D50 = np.array([0.9642, 1.0, 0.8249])
SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
ADOBE_TO_XYZ = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])


def xyz_to_srgb(xyz: np.ndarray) -> np.ndarray:
    linear = np.clip(np.linalg.solve(SRGB_TO_XYZ, xyz.reshape(-1, 3).T).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def lab_to_srgb(lab: tuple[float, float, float]) -> np.ndarray:
    y = (lab[0] + 16) / 116
    f = np.array([y + lab[1] / 500, y, y - lab[2] / 200])
    return xyz_to_srgb(D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)))[0]


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def icc(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes], title: bytes = b"test") -> bytes:
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(title) + 1) + title + bytes(79),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50),
        **tags,
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, kind, space, connection)
    date = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    return (head + date + b"acsp" + bytes(28) + fixed(*D50)).ljust(128, b"\0") + table + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))


def rgb_profile(to_xyz: np.ndarray, curve: bytes, title: bytes = b"test") -> bytes:
    tags = {}
    for channel, column in zip((b"r", b"g", b"b"), to_xyz.T, strict=True):
        tags[channel + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*column)
        tags[channel + b"TRC"] = curve
    return icc(b"RGB ", b"XYZ ", b"mntr", tags, title)


def adobe_rgb_profile() -> bytes:
    return rgb_profile(ADOBE_TO_XYZ, gamma_curve(563 / 256))


def grey_profile(gamma: float) -> bytes:
    return icc(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": gamma_curve(gamma)})


# What the inks of an invented press look like, as CIE Lab; every other mixture is black.
INKS = {
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (60, -20, -30),
    (0, 1, 0, 0): (50, 50, 10),
    (0, 0, 1, 0): (85, 5, 60),
    (0, 0, 0, 1): (20, 0, 0),
}


def cmyk_profile() -> bytes:
    """An 8-bit look-up table with two grid points an ink."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    grid = bytearray()
    for corner in corners:
        lightness, a, b = INKS.get(corner, (0, 0, 0))
        grid += bytes([round(lightness * 2.55), a + 128, b + 128])
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + bytes(grid) + ramp * 3
    return icc(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class TestColour:
    def test_cmyk_without_a_profile(self, tmp_path):
        data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
        assert np.abs(np.asarray(read_image(write(tmp_path, data)), int) - [255, 0, 0]).max() <= 2

    @pytest.mark.parametrize("ink", INKS)
    def test_cmyk_goes_through_its_profile(self, tmp_path, ink):
        source = Image.new("CMYK", (8, 8), tuple(255 * part for part in ink))
        data = encode(source, "JPEG", quality=100, icc_profile=cmyk_profile())
        image = np.asarray(read_image(write(tmp_path, data)), float)
        assert np.abs(image - lab_to_srgb(INKS[ink])).max() <= 4

    @pytest.mark.parametrize("format", ["PNG", "WEBP"])
    def test_adobe_rgb_becomes_srgb(self, tmp_path, format):
        colours = np.array([[[200, 120, 90], [90, 160, 110], [100, 110, 190], [128, 128, 128], [0, 255, 0]]], np.uint8)
        options = {"lossless": True} if format == "WEBP" else {}
        data = encode(colours, format, icc_profile=adobe_rgb_profile(), **options)
        image = np.asarray(read_image(write(tmp_path, data)), float)[0]
        truth = xyz_to_srgb((colours[0] / 255) ** (563 / 256) @ ADOBE_TO_XYZ.T)
        assert np.abs(image - truth).max() <= 2
        assert np.abs(image - colours[0]).max() > 10

    def test_alpha_is_laid_over_white_after_the_profile(self, tmp_path):
        colour = np.array([200, 120, 90])
        data = encode(Image.new("RGBA", (2, 2), (*colour.tolist(), 102)), icc_profile=adobe_rgb_profile())
        with pytest.warns(ImageWarning, match="white"):
            image = np.asarray(read_image(write(tmp_path, data)), float)[0, 0]
        truth = xyz_to_srgb((colour / 255) ** (563 / 256) @ ADOBE_TO_XYZ.T)[0]
        assert np.abs(image - (truth * 0.4 + 255 * 0.6)).max() <= 2

    def test_srgb_is_left_exactly_as_it_is(self, tmp_path):
        levels = np.linspace(0, 1, 1024)
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        curve = b"curv" + struct.pack(">II", 0, 1024) + np.round(linear * 65535).astype(">u2").tobytes()
        profile = rgb_profile(SRGB_TO_XYZ, curve, b"sRGB by table")  # rounded, as those in cameras' files are
        data = encode(photo(300, 300), icc_profile=profile)
        np.testing.assert_array_equal(read_image(write(tmp_path, data)), photo(300, 300))

    def test_linear_grey(self, tmp_path):
        data = encode(Image.new("L", (2, 2), 55), icc_profile=grey_profile(1.0))
        linear = 55 / 255
        truth = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
        assert np.abs(np.asarray(read_image(write(tmp_path, data))) - truth).max() <= 2

    def test_grey_picture_with_an_rgb_profile(self, tmp_path):
        data = encode(Image.new("L", (2, 2), 128), icc_profile=adobe_rgb_profile())
        truth = xyz_to_srgb(np.full(3, 128 / 255) ** (563 / 256) @ ADOBE_TO_XYZ.T)
        assert np.abs(np.asarray(read_image(write(tmp_path, data))) - truth).max() <= 2

    @pytest.mark.parametrize("profile", [b"not a profile", cmyk_profile(), adobe_rgb_profile()[:150]])
    def test_an_unusable_profile_is_said_and_skipped(self, tmp_path, profile):
        path = write(tmp_path, encode(photo(), icc_profile=profile))
        with pytest.warns(ImageWarning, match=r"picture\.png.*colour profile"):
            image = read_image(path)
        np.testing.assert_array_equal(image, photo())


class TestRefused:
    def test_missing(self, tmp_path):
        refused(lambda: read_image(tmp_path / "none.png"), "none.png", "does not exist")
        refused(lambda: read_image("bad\0name.png"), "does not exist")

    def test_a_folder(self, tmp_path):
        refused(lambda: read_image(tmp_path), tmp_path.name, "not a file")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_a_pipe_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        refused(lambda: read_image(tmp_path / "pipe.png"), "pipe.png", "not a file")

    def test_empty(self, tmp_path):
        refused(lambda: read_image(write(tmp_path, b"")), "picture.png", "empty")

    @pytest.mark.parametrize(
        "data", [b"just some words\n", b"\0" * 5000, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"]
    )
    def test_not_a_picture(self, tmp_path, data):
        refused(lambda: read_image(write(tmp_path, data)), "picture.png", "PNG, JPEG or WebP")

    @pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
    def test_formats_that_are_not_on_the_list(self, tmp_path, format):
        refused(lambda: read_image(write(tmp_path, encode(photo(), format))), "picture.png", "PNG, JPEG or WebP")

    def test_a_name_with_a_line_break_still_gives_one_line(self, tmp_path):
        refused(lambda: read_image(write(tmp_path, b"", "a\nb.png")), "empty")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
    def test_no_permission(self, tmp_path):
        path = write(tmp_path, encode(photo()))
        path.chmod(0)
        refused(lambda: read_image(path), "picture.png", "Permission")


class TestDamage:
    FILES: ClassVar = {
        "PNG": encode(photo()),
        "PNG with a text chunk": png(photo(), 8, 2, chunk(b"tEXt", b"Comment\0words")),
        "16-bit PNG": png(photo().astype(int) * 257, 16, 2),
        "JPEG": encode(photo(64, 64), "JPEG"),
        "progressive JPEG": encode(photo(64, 64), "JPEG", progressive=True),
        "WebP": encode(photo(), "WEBP"),
        "lossless WebP": encode(photo(), "WEBP", lossless=True),
    }

    @pytest.mark.parametrize("kind", FILES)
    def test_cut_off_anywhere_it_is_whole_or_an_error(self, tmp_path, kind):
        data = self.FILES[kind]
        whole = np.asarray(read_image(write(tmp_path, data)))
        errors: list[str] = []
        for length in range(1, len(data), max(1, len(data) // 150)):
            path = write(tmp_path, data[:length])
            try:
                image = read_image(path)
            except EditbookError as error:
                errors.append(str(error))
            else:
                np.testing.assert_array_equal(image, whole)
                assert length > 0.9 * len(data)  # only what follows the pixels may be missing
        assert len(errors) > 100
        assert all("picture.png" in error and "\n" not in error for error in errors)

    @pytest.mark.parametrize("kind", FILES)
    def test_flipped_bits_never_give_another_kind_of_error(self, tmp_path, kind):
        data = bytearray(self.FILES[kind])
        random = np.random.default_rng(3)
        errors: list[str] = []
        for _ in range(150):
            position, bit = int(random.integers(len(data))), 1 << int(random.integers(8))
            data[position] ^= bit
            path = write(tmp_path, bytes(data))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert read_image(path).mode == "RGB"
                except EditbookError as error:
                    errors.append(str(error))
            data[position] ^= bit
        assert errors
        assert all("picture.png" in error and "\n" not in error for error in errors)


class TestSizeLimit:
    @pytest.mark.parametrize("size", [(9000, 9000), (10000, 10000), (20000, 10000), (2**31 - 1, 2**31 - 1)])
    def test_a_bomb_is_refused_from_its_header(self, tmp_path, size):
        # The pixel data are missing, so that decoding would give the error for damaged files.
        path = write(tmp_path, png(np.zeros((1, 1)), 1, 0, size=size))
        message = refused(lambda: read_image(path), "picture.png", "the limit is 64 megapixels")
        assert "damaged" not in message

    def test_a_real_bomb(self, tmp_path):
        width, height = 20000, 10000
        rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
        header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert len(data) < 100_000
        refused(lambda: read_image(write(tmp_path, data)), "picture.png", "64 megapixels")

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
    def test_the_limit_is_inclusive_and_can_be_set(self, tmp_path, format):
        path = write(tmp_path, encode(photo(20, 10), format))
        assert read_image(path, max_pixels=200).size == (20, 10)
        refused(lambda: read_image(path, max_pixels=199), "20 x 10 pixels", "limit")

    def test_a_limit_above_the_guard_of_pillow_names_the_guard(self, tmp_path):
        path = write(tmp_path, png(np.zeros((1, 1)), 1, 0, size=(20000, 10000)))
        refused(lambda: read_image(path, max_pixels=10**9), "the limit is 179 megapixels")

    def test_pictures_in_memory_have_it_too(self, tmp_path):
        path = write(tmp_path, png(np.zeros((1, 1)), 1, 0, size=(9000, 9000)))
        with Image.open(path) as lazy:
            refused(lambda: as_image(lazy), "picture.png", "64 megapixels")
        assert MAX_PIXELS == 64_000_000


class TestAnimation:
    @pytest.mark.parametrize(
        ("format", "options"), [("PNG", {}), ("PNG", {"default_image": True}), ("WEBP", {"lossless": True})]
    )
    def test_first_frame_with_a_warning(self, tmp_path, format, options):
        later = [Image.fromarray(photo(seed=seed)) for seed in (1, 2)]
        path = write(tmp_path, encode(photo(), format, save_all=True, append_images=later, **options))
        with pytest.warns(ImageWarning, match=r"picture\.png.*animation.*first frame"):
            image = read_image(path)
        np.testing.assert_array_equal(image, photo())

    def test_a_photograph_with_its_preview_is_no_animation(self, tmp_path):
        preview = Image.new("RGB", (8, 8), "blue")
        data = encode(Image.new("RGB", (16, 16), "red"), "MPO", save_all=True, append_images=[preview])
        image = read_image(write(tmp_path, data, "phone.jpg"))
        assert image.size == (16, 16)
        assert np.abs(np.asarray(image, int) - [255, 0, 0]).max() <= 4


class TestAsImage:
    def test_path(self, tmp_path):
        path = write(tmp_path, encode(photo()))
        np.testing.assert_array_equal(as_image(path), photo())
        np.testing.assert_array_equal(as_image(str(path)), photo())

    def test_pil_is_copied(self):
        source = Image.fromarray(photo())
        image = as_image(source)
        image.putpixel((0, 0), (1, 2, 3))
        np.testing.assert_array_equal(source, photo())

    @pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_other_modes(self, mode):
        source = Image.fromarray(photo()).convert(mode)
        image = as_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(image, source.convert("RGB"))

    def test_pil_with_alpha(self):
        with pytest.warns(ImageWarning, match="white"):
            image = as_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
        assert (np.asarray(image) == 255).all()

    def test_pil_floats_follow_the_rule_for_float_arrays(self):
        assert (np.asarray(as_image(Image.new("F", (2, 2), 0.2))) == 51).all()
        refused(lambda: as_image(Image.new("F", (2, 2), 200.0)), "[0, 1]")

    def test_pil_that_turns_out_truncated(self):
        lazy = Image.open(io.BytesIO(encode(photo(64, 64))[:3000]))
        refused(lambda: as_image(lazy), "The picture", "truncated")

    def test_an_error_of_two_lines_becomes_one(self):
        class Broken(Image.Image):
            def load(self):
                raise OSError("first line\nsecond line")

            size = (4, 4)

        refused(lambda: as_image(Broken()), "first line second line")

    def test_uint8(self):
        np.testing.assert_array_equal(as_image(photo()), photo())
        grey = np.asarray(as_image(photo()[..., 0]))
        np.testing.assert_array_equal(grey, np.repeat(photo()[..., :1], 3, -1))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats(self, dtype):
        levels = (np.arange(256).reshape(16, 16) / 255).astype(dtype)
        np.testing.assert_array_equal(np.asarray(as_image(levels))[..., 1], np.arange(256).reshape(16, 16))

    def test_floats_are_rounded_and_not_cut(self):
        assert as_image(np.full((1, 1), 0.999)).getpixel((0, 0)) == (255, 255, 255)

    def test_views_with_any_strides(self):
        np.testing.assert_array_equal(as_image(photo()[::-1, ::2]), photo()[::-1, ::2])

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((4, 4, 4), np.uint8), ["(4, 4, 4)", "shape"]),
            (np.zeros((3, 4, 4), np.uint8), ["(3, 4, 4)"]),
            (np.zeros((4, 4, 1), np.uint8), ["(4, 4, 1)"]),
            (np.zeros((1, 4, 4, 3), np.uint8), ["(1, 4, 4, 3)"]),
            (np.zeros(4, np.uint8), ["(4,)"]),
            (np.zeros((0, 4, 3), np.uint8), ["(0, 4, 3)"]),
            (np.full((4, 4), np.nan), ["[0, 1]", "nan"]),
            (np.full((4, 4), np.inf), ["[0, 1]", "inf"]),
            (np.full((4, 4, 3), -0.1), ["[0, 1]", "-0.1"]),
            (np.full((4, 4, 3), 255.0), ["[0, 1]", "255"]),
            (np.zeros((4, 4), np.int64), ["int64"]),
            (np.zeros((4, 4), bool), ["bool"]),
            (np.zeros((4, 4), complex), ["complex"]),
        ],
    )
    def test_arrays_that_are_no_pictures(self, array, words):
        refused(lambda: as_image(array), *words)

    @pytest.mark.parametrize("thing", [None, 3, b"bytes", [[0, 1]], object()])
    def test_things_that_are_no_pictures(self, thing):
        refused(lambda: as_image(thing), "A picture is", type(thing).__name__)

    def test_no_pixels(self):
        refused(lambda: as_image(Image.new("RGB", (0, 4))), "no pixels", "0 x 4")

    @pytest.mark.parametrize("wrong", [np.full((4, 4, 3), np.nan), "nowhere.png", None, np.zeros((4, 4), int)])
    def test_errors_begin_with_the_argument_if_it_has_a_name(self, wrong):
        without = refused(lambda: as_image(wrong))
        assert refused(lambda: as_image(wrong, "reference[1]")) == f"reference[1]: {without}"


class TestSets:
    @pytest.mark.parametrize("single", [photo(), photo()[..., 0], Image.fromarray(photo()), "a.png", Path("a.png"), 3])
    def test_one_picture_is_no_set(self, single):
        refused(lambda: picture_list(single, "images"), "images must be a list", type(single).__name__)

    def test_whatever_holds_pictures_is_a_set(self):
        pictures = [photo(seed=seed) for seed in range(3)]
        for holder in (
            pictures,
            tuple(pictures),
            iter(pictures),
            np.stack(pictures),
            dict(enumerate(pictures)).values(),
        ):
            assert all(np.array_equal(a, b) for a, b in zip(picture_list(holder, "images"), pictures, strict=True))

    def test_batches_hold_every_picture_once_and_in_order(self):
        pictures = [photo(seed=seed) for seed in range(7)]
        batches = [*image_batches(iter(pictures), "images", 3)]
        assert [len(batch) for batch in batches] == [3, 3, 1]
        read = [picture for batch in batches for picture in batch]
        assert all(np.array_equal(a, b) for a, b in zip(read, pictures, strict=True))
        assert [*image_batches([], "images")] == []

    def test_a_wrong_one_is_named_across_batches(self):
        pictures = [photo()] * 4 + [np.full((4, 4), np.nan)]
        refused(lambda: [*image_batches(pictures, "images", 3)], "images[4]:", "nan")


class TestFit:
    @pytest.mark.parametrize("mode", ["crop", "pad"])
    def test_a_picture_of_that_size_is_untouched(self, mode):
        np.testing.assert_array_equal(fit(Image.fromarray(photo(16, 16)), 16, mode), photo(16, 16))

    @pytest.mark.parametrize(("width", "height"), [(30, 16), (16, 31), (17, 16), (16, 16)])
    def test_crop_keeps_the_middle(self, width, height):
        left, top, right, bottom = crop_box(width, height)
        assert right - left == bottom - top == min(width, height)
        assert abs(left - (width - right)) <= 1
        assert abs(top - (height - bottom)) <= 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            image = fit(Image.fromarray(photo(width, height)), 16)
        np.testing.assert_array_equal(image, photo(width, height)[top:bottom, left:right])

    def test_crop_says_what_it_cut_off(self):
        with pytest.warns(ImageWarning, match="middle 48 x 48 of 64 x 48"):
            fit(Image.new("RGB", (64, 48)), 16)
        fit(Image.new("RGB", (64, 64)), 16)  # nothing lost, nothing said

    def test_pad_keeps_everything_on_white(self):
        image = np.asarray(fit(Image.new("RGB", (64, 32), "black"), 16, "pad"))
        assert (image[4:12] == 0).all()
        assert (image[:4] == 255).all()
        assert (image[12:] == 255).all()

    @pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (7, 3)])
    @pytest.mark.parametrize("mode", ["crop", "pad"])
    def test_any_shape_gives_the_square(self, size, mode):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            image = fit(Image.new("RGB", size, "black"), 64, mode)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert np.asarray(image).min() == 0

    def test_shrinking_averages_and_does_not_skip(self):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 255
        assert abs(np.asarray(fit(Image.fromarray(stripes), 16), float).mean() - 127.5) < 3

    def test_bad_arguments(self):
        refused(lambda: fit(Image.new("RGB", (4, 4)), 8, "corp"), "corp", "Did you mean 'crop'?")
        refused(lambda: fit(Image.new("RGB", (4, 4)), 0), "0 x 0")
        refused(lambda: fit(Image.new("RGB", (0, 4)), 8), "0 x 4")


class TestSave:
    @pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp"])
    def test_lossless(self, tmp_path, suffix):
        path = save_image(Image.fromarray(photo()), tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read_image(path), photo())

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
    def test_jpeg_keeps_colour_at_full_resolution(self, tmp_path, suffix):
        stripes = np.zeros((16, 16, 3), np.uint8)
        stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 200  # one pixel red, one blue: lost by the usual subsampling
        image = read_image(save_image(Image.fromarray(stripes), str(tmp_path / f"a{suffix}")))
        assert np.abs(np.asarray(image, int) - stripes).max() < 40

    def test_masks_in_grey(self, tmp_path):
        with Image.open(save_image(Image.fromarray(photo()[..., 0]), tmp_path / "mask.png")) as image:
            assert image.mode == "L"

    def test_it_replaces_and_leaves_nothing_else(self, tmp_path):
        for seed in (0, 1):
            save_image(Image.fromarray(photo(seed=seed)), tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo(seed=1))
        assert os.listdir(tmp_path) == ["a.png"]

    @pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt", ".png"])
    def test_unknown_suffix(self, tmp_path, name):
        refused(lambda: save_image(Image.new("RGB", (2, 2)), tmp_path / name), "suffix", ".png")
        assert not os.listdir(tmp_path)

    def test_nearest_suffix_is_suggested(self):
        refused(lambda: save_image(Image.new("RGB", (2, 2)), "a.jpgg"), "Did you mean '.jpg'?")

    def test_what_the_format_cannot_hold(self, tmp_path):
        refused(lambda: save_image(Image.new("RGBA", (2, 2)), tmp_path / "a.jpg"), "a.jpg", "RGBA")
        refused(lambda: save_image(Image.new("L", (20000, 1)), tmp_path / "a.webp"), "a.webp", "WEBP")
        assert not os.listdir(tmp_path)

    def test_missing_folder(self, tmp_path):
        refused(lambda: save_image(Image.new("RGB", (2, 2)), tmp_path / "none" / "a.png"), "a.png", "No such file")
