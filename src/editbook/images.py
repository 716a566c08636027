"""Pictures in and out: whatever a user has becomes plain 8-bit sRGB, or an error that names the file."""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import EditbookError, unknown
from .files import save_json as save_json
from .files import writable_folder as writable_folder
from .files import write_file

# An allow-list: Pillow's readers of rarer formats have had most of its security holes.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000

Picture = Image.Image | np.ndarray | str | os.PathLike[str]
"""Whatever `as_image` reads."""

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
}


class ImageWarning(UserWarning):
    """Something in a picture was left out or changed on the way in: transparency, later frames, the edges."""


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a PNG, JPEG or WebP file as 8-bit sRGB, upright and opaque.

    EXIF orientation is applied, 16 bits are scaled to 8, embedded colour profiles (CMYK too) are converted to
    sRGB. The result carries no metadata. Transparency is laid over white, and of an animation the first frame
    is taken; either gives an `ImageWarning`.

    Args:
        path: The file. What counts is its content, not its suffix.
        max_pixels: Width times height allowed, checked before anything is decoded. Pillow's own guard
            (`2 * Image.MAX_IMAGE_PIXELS`) stays in force beside it.

    Returns:
        The picture, mode RGB.

    Raises:
        EditbookError: No such file, not a file of these formats, empty, damaged or truncated, or too large.
    """
    name = repr(os.fspath(path))
    if not Path(path).is_file():  # also keeps out pipes and devices, which may never end
        kind = "is not a file" if os.path.lexists(path) else "does not exist"
        raise EditbookError(f"{name} {kind}. Give the path of a PNG, JPEG or WebP picture.")
    try:
        if not os.path.getsize(path):
            raise EditbookError(f"{name} is empty (0 bytes).")
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels; here max_pixels decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path, formats=FORMATS)
        with file:
            return _to_rgb(file, name, max_pixels)
    except (EditbookError, Warning):
        raise
    except UnidentifiedImageError as error:
        raise EditbookError(f"{name} is not a PNG, JPEG or WebP picture, or its start is damaged.") from error
    except Image.DecompressionBombError as error:
        guard = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        limit = _megapixels(min(max_pixels, guard))
        raise EditbookError(f"{name} has over {_megapixels(guard)}; the limit is {limit}.") from error
    except Exception as error:  # on damaged files the readers raise nearly every type there is
        raise _unreadable(name, error) from error


def as_image(picture: Picture, name: str | None = None) -> Image.Image:
    """An RGB picture from whatever holds one.

    Args:
        picture: A path; a PIL image of any mode, treated as `read_image` treats a file (mode I holds 16-bit
            values); or an array (height, width, 3) or (height, width), uint8 or float in [0, 1].
        name: The argument that it was given as, e.g. "reference[1]": errors begin with it.

    Returns:
        A new picture, mode RGB.

    Raises:
        EditbookError: Anything else; NaN or a value out of range; what `read_image` raises.
    """
    if name is not None:
        try:
            return as_image(picture)
        except EditbookError as error:
            raise EditbookError(f"{name}: {error}") from error
    if isinstance(picture, str | os.PathLike):
        return read_image(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if not isinstance(picture, Image.Image):
        kind = type(picture).__name__
        raise EditbookError(f"A picture is a path, a PIL image or a NumPy array, not {kind}.")
    filename = getattr(picture, "filename", "")
    name = repr(filename) if filename else "The picture"
    try:
        return _to_rgb(picture, name, MAX_PIXELS)
    except (EditbookError, Warning):
        raise
    except Exception as error:  # PIL images are lazy: damage shows only now
        raise _unreadable(name, error) from error


def picture_list(pictures: Iterable[Picture], name: str) -> list[Picture]:
    """What a list, a generator or an array (n, height, width, 3) of pictures holds, not yet read.

    Args:
        pictures: The pictures.
        name: The argument that they were given as, for errors.

    Raises:
        EditbookError: It is a single picture, whose rows would pass for pictures, or nothing that holds any.
    """
    single = isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) < 4
    if single or not isinstance(pictures, Iterable):
        kind = type(pictures).__name__
        raise EditbookError(f"{name} must be a list of pictures, not {kind}; put a single picture into a list, too.")
    return list(pictures)


def image_batches(pictures: Iterable[Picture], name: str, size: int = 64) -> Iterator[list[Image.Image]]:
    """The pictures of a list, read as `as_image` does, up to `size` at a time: a set need not fit into memory.

    Raises:
        EditbookError: What `picture_list` raises; a picture cannot be read: the message names it, e.g. "images[3]".
    """
    listed = picture_list(pictures, name)
    for start in range(0, len(listed), size):
        part = listed[start : start + size]
        yield [as_image(picture, f"{name}[{start + k}]") for k, picture in enumerate(part)]


def crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest centred square, in pixels, as (left, top, right, bottom)."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def fit(image: Image.Image, size: int, mode: str = "crop") -> Image.Image:
    """Bring a picture to `size` x `size` pixels for the model (Lanczos); that size already stays as it is.

    Args:
        image: Mode RGB or L.
        size: Side of the square, in pixels.
        mode: "crop" keeps the centred square `crop_box` and warns of what it cut off; "pad" keeps the whole
            picture, centred on white.

    Raises:
        EditbookError: Unknown mode, or a size below 1.
    """
    if mode not in ("crop", "pad"):
        raise unknown("fit mode", mode, ("crop", "pad"))
    width, height = image.size
    if size < 1 or not width * height:
        raise EditbookError(f"Cannot fit a picture of {width} x {height} pixels into {size} x {size}.")
    if image.size == (size, size):
        return image
    if mode == "crop":
        box = crop_box(width, height)
        if width != height:
            side = min(width, height)
            _warn(f"Kept the middle {side} x {side} of {width} x {height} pixels; crop it yourself to choose.")
        return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new(image.mode, (size, size), "white")
    corner = ((size - inner[0]) // 2, (size - inner[1]) // 2)
    square.paste(image.resize(inner, Image.Resampling.LANCZOS), corner)
    return square


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture in one step (see `write_file`), as its suffix says: .png, .jpg, .jpeg or .webp.

    PNG and WebP lose nothing; JPEG is written at quality 95 with full colour resolution.

    Raises:
        EditbookError: Unknown suffix, a picture that the format cannot hold, or a place that is not writable.
    """
    path = Path(path)
    options = _SAVE_OPTIONS.get(path.suffix.lower())
    if options is None:
        raise unknown("picture suffix", path.suffix, _SAVE_OPTIONS)
    data = BytesIO()
    try:
        image.save(data, **options)
    except (OSError, ValueError) as error:
        message = f"Cannot write {str(path)!r} as {options['format']}: {_one_line(error)}."
        raise EditbookError(message) from error
    return write_file(path, data.getvalue())


def data_address(image: Image.Image) -> str:
    """A picture as the address of a PNG that stands in the page itself."""
    data = BytesIO()
    image.convert("RGB").save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """8-bit sRGB without alpha or metadata. `image` may still be undecoded: its size is checked first."""
    width, height = image.size
    if not width * height:
        raise EditbookError(f"{name} has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        have, limit = _megapixels(width * height), _megapixels(max_pixels)
        message = f"{name} has {width} x {height} pixels ({have}); the limit is {limit}. Make it smaller first."
        raise EditbookError(message)
    image.load()
    # A JPEG of several pictures (MPO) is a photograph with its previews or depth, not an animation.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        _warn(f"{name} is an animation; only its first frame is used.")

    profile = image.info.get("icc_profile")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises several types; the pixels are good all the same
        _warn(f"{name} has damaged EXIF data; its orientation is taken as upright.")
    if image.mode.startswith("I"):
        image = _from_16_bit(image, name)
    elif image.mode == "F":
        return _from_array(np.asarray(image))

    grey, alpha = image.mode in ("1", "L", "LA"), None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        image = image if grey else rgba
    # A profile describes the stored colour space, so the image stays in it until the profile is applied.
    image = image.convert("L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")
    image = _to_srgb(image, profile, name)
    if alpha is not None and alpha.getextrema() != (255, 255):
        _warn(f"{name} has transparent parts; they were laid over white.")
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    image.info = {}  # else the next save would write the old profile beside the new colours
    return image


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Mode I;16 or I (values 0 to 65535) as L, or LA where one grey level is marked as transparent."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise EditbookError(f"{name} has grey values from {low} to {high}; 0 to 65535 is allowed.")
    # Pillow's own conversion clips at 255. The sum divides by 257 with rounding: 65535 becomes 255.
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Mode L, RGB or CMYK to RGB, through the embedded ICC profile if there is one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if source.profile.xcolor_space.strip() == "RGB" and image.mode == "L":
                image = image.convert("RGB")
            # Most profiles are sRGB itself; the way through Lab and back would only add rounding.
            if not (source.profile.profile_description or "").startswith("sRGB"):
                converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
                assert converted is not None  # only None when asked to work in place
                return converted
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            _warn(f"{name} has a colour profile that cannot be used; its colours are taken as they are.")
    return image.convert("RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or not array.size:
        shapes = "(height, width, 3) or (height, width)"
        raise EditbookError(f"A picture array has shape {shapes}, not {array.shape}.")
    if np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # false for NaN as well
            raise EditbookError(f"A float picture lies in [0, 1]; this one has {low:.4g} to {high:.4g}.")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise EditbookError(f"A picture array is uint8, or float in [0, 1], not {array.dtype}.")
    return Image.fromarray(array).convert("RGB")


def _unreadable(name: str, error: Exception) -> EditbookError:
    return EditbookError(f"{name} cannot be read, it is damaged or truncated: {_one_line(error)}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.4g} megapixels"


def _warn(message: str) -> None:
    warnings.warn(message, ImageWarning, stacklevel=3)
