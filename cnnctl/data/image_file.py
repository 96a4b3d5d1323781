"""An image file of any common kind -> uint8 pixels, or one sentence on what is wrong with it.

What becomes of each kind is fixed here, once, for training and prediction: grey, palette and CMYK
become RGB (or grey); transparent pixels are laid on white; 16-bit grey is divided by 257, not
clipped, and of 16-bit colour the high byte is taken (at most one level of 255 from that); an
animation gives its first frame; EXIF orientation is applied (of an annotated image, where its
annotation's size says so). A file that is cut off is an error, never grey pixels.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cnnctl.errors import Exit, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)
MAX_PIXELS = 89_478_485  # Pillow's own limit for suspicion: a quarter of a gigabyte of RGB

# Only formats that are decoded in this process: Pillow would start another program for some.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_FAST = ("JPEG", "MPO")  # MPO is a JPEG with more pictures behind the first
_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC = 262  # the TIFF tag: 0 where 0 is white


def read_image(path: str | os.PathLike[str], channels: int = 3) -> Tensor:
    """The pixels of a file, (C, H, W) uint8.

    Args:
        channels: 3 for RGB, 1 for grey (luma of ITU-R 601).

    Raises:
        UserError: the file is absent, unreadable, no image, cut off or too large (code 3).
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    try:
        return decode_image(file_bytes(path), channels)
    except (MemoryError, UserError):
        raise
    except ValueError as error:
        raise UserError(str(error), file=printable(path), code=Exit.DATA) from None


def read_annotated(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    channels: int = 3,
    *,
    stored: bool = False,
) -> Tensor:
    """As ``read_image``, of an image that has a mask or outlines, which no tool turns with it.

    Some tools annotate an image as its EXIF orientation shows it, others as it is stored. Where the
    two differ in size, the one of the annotation's size is taken. Where they do not (turned by 180
    degrees, mirrored, square) a guess could put every class elsewhere, so the image is refused.

    Args:
        size: (h, w) of the annotation.
        stored: take the pixels as stored where the sizes do not tell, as the annotation's own
            tools are known to do.

    Raises:
        UserError: as ``read_image``; or the sizes do not tell (code 3).
    """
    try:
        raw = file_bytes(path)
        return decode_image(raw, channels, lambda image: _is_shown(image, size, stored))
    except (MemoryError, UserError):
        raise
    except ValueError as error:
        raise UserError(str(error), file=printable(path), code=Exit.DATA) from None


def decode_image(
    raw: bytearray, channels: int = 3, shown: Callable[[Image], bool] = lambda _: True
) -> Tensor:
    """As ``read_image``, of a file's bytes; raises ValueError saying what is wrong with them.

    Args:
        shown: whether a turned image is wanted as its orientation shows it, not as stored.
    """
    image = open_image(raw)
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ValueError(f"is too large: {size} is more than {MAX_PIXELS:,} pixels")
    try:
        turn = orientation(image) != 1 and shown(image)
        pixels = _fast(raw, image, turn) if image.format in _FAST else None
        if pixels is None:
            pixels = _pillow(image, turn)
    except (MemoryError, _Untold):
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ValueError(f"does not decode: {decoder_reason(error)}") from None
    return _to_channels(pixels, channels)


def printable(path: str | os.PathLike[str]) -> str:
    """A file's name as text that can be written anywhere, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_bytes(path: str | os.PathLike[str]) -> bytearray:
    name = printable(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no ordinary file"
            raise UserError(f"is {kind}, not an image", file=name, code=Exit.DATA)
        with open(path, "rb") as file:
            return bytearray(file.read())
    except FileNotFoundError:
        raise UserError("there is no such file", file=name, code=Exit.DATA) from None
    except PermissionError:
        raise UserError("may not be read (permission denied)", file=name, code=Exit.DATA) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=name, code=Exit.DATA) from None


def open_image(raw: bytearray) -> Image:
    """The header alone; raises ValueError where these bytes are no image."""
    from PIL import Image, UnidentifiedImageError

    _set_warnings()
    try:
        return Image.open(io.BytesIO(raw), formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(f"is too large: more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ValueError(_not_an_image(raw)) from None
    except Exception as error:
        raise ValueError(f"does not decode: {decoder_reason(error)}") from None


@cache
def _set_warnings() -> None:
    """Pillow's are no news to the user (odd EXIF), but for the one on size: that is an error."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def _not_an_image(raw: bytearray) -> str:
    if not raw:
        return "is empty (0 bytes)"
    if not any(raw):
        return f"holds nothing but zeros ({len(raw):,} bytes)"
    start = bytes(raw[:512]).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "is a web page or XML, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not an image: fetch it with git lfs pull"
    whole = {b"\xff\xd8\xff": "JPEG", b"\x89png": "PNG", b"gif8": "GIF", b"riff": "WebP"}
    kind = next((name for magic, name in whole.items() if start.startswith(magic)), None)
    if kind:
        return f"is a {kind} file without a readable header: cut off or damaged"
    return f"is no image of a known format (it starts with {bytes(raw[:8])!r})"


class _Untold(ValueError):
    """Nothing says whether an annotation is of the turned or of the stored image."""


def _is_shown(image: Image, size: tuple[int, int], stored: bool) -> bool:
    """Whether an annotation of ``size`` is of the turned image as it is shown."""
    number, own = orientation(image), (image.height, image.width)
    if number > 4 and own[0] != own[1]:
        # Pillow gives a TIFF turned, and says so in its size: there is no other choice.
        return image.format == "TIFF" or own != size
    if stored and image.format != "TIFF":
        return False
    raise _Untold(
        f"has EXIF orientation {number}, and the sizes do not tell whether its annotation is of "
        "the turned image or of the stored one: save it as it is to be seen, without the tag"
    )


def _fast(raw: bytearray, image: Image, turn: bool) -> Tensor | None:
    """torchvision's JPEG decoder, (1 or 3, H, W) uint8; None where only Pillow does what is wanted.

    It takes half of Pillow's time for a 32 x 32 image and four fifths for 500 x 375, with the same
    pixels. Its PNG decoder is not used: a flipped bit in a file makes it kill the process
    (torchvision 0.29.2).
    """
    decode = _torchvision_decoder()
    if decode is None or image.mode not in ("L", "RGB") or turn:
        return None
    # Not torchvision's own orientation: it misses some of what Pillow finds (behind XMP, in XMP).
    return decode(torch.frombuffer(raw, dtype=torch.uint8), apply_exif_orientation=False)


@cache
def _torchvision_decoder() -> Any:
    """None where torchvision was built without it, or (announced in 0.29) no longer has it."""
    try:
        from torchvision.io import decode_image as decode
    except ImportError:
        return None
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")
    return decode


def _from_16_bits(pixels: Tensor) -> Tensor:
    """0..65535 -> 0..255, rounded: 65535 = 257 * 255, so both ends are exact."""
    return ((pixels + 128) // 257).to(torch.uint8)


def _pillow(image: Image, turn: bool) -> Tensor:
    """(1, 3 or 4, H, W) uint8 of the first frame, turned as its EXIF orientation says."""
    image.load()
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):
        return _deep_grey(image, turn)
    image = _upright(image, turn)
    if image.mode in ("I", "F"):
        kind = "32-bit whole" if image.mode == "I" else "floating-point"
        raise ValueError(f"{kind} numbers have no fixed range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _deep_grey(image: Image, turn: bool) -> Tensor:
    """(1, H, W) uint8 of up to 16 bits; what Pillow does for 8 bits but not for 16 is done here."""
    values = torch.from_numpy(np.array(_upright(image, turn)).astype(np.int32))[None]
    grey = _from_16_bits(values)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # a TIFF whose 0 is white
        grey = 255 - grey
    transparent = image.info.get("transparency")  # of a PNG: one value
    return grey if transparent is None else grey.masked_fill(values == transparent, 255)


def orientation(image: Image) -> int:
    """By EXIF: 1 (as stored, or not said) to 8; of a TIFF before it is loaded, which turns it.

    A PNG is loaded for it, as it can be behind the pixels; raises what its decoder raises.
    """
    if image.format not in (*_FAST, "TIFF"):
        image.load()
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not make the pixels worse
        return 1
    return found if found in range(2, 9) else 1


def _upright(image: Image, turn: bool) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if turn else image


def _to_channels(pixels: Tensor, channels: int) -> Tensor:
    """(1..4, H, W) as grey, grey and alpha, RGB, or RGB and alpha -> (channels, H, W)."""
    if len(pixels) in (2, 4):
        colour, alpha = pixels[:-1].int(), pixels[-1:].int()
        pixels = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, 1, 1)
    red, green, blue = pixels.int()
    luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # as Pillow's convert("L")
    return luma.to(torch.uint8)[None]


def decoder_reason(error: Exception) -> str:
    """The last words of a decoder's message; torchvision's begins with its source file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rsplit(".cpp:", 1)[-1].partition(", ")[2] if ".cpp:" in text else text
