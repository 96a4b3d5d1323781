"""A file of class numbers -> those numbers, or one sentence on what is wrong with it; and back.

A palette PNG is read as its indices, a grey one as the values it stores (1, 2 or 4 bits are not
stretched to 0..255), never through its colours. Alpha, 16 bits, an orientation, and formats that do
not keep numbers are refused: what they would mean as classes nobody can say. The check sums of a
PNG are tested, which Pillow does not do for pixels: a flipped bit is an error, never another class.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cnnctl.data.image_file import (
    MAX_PIXELS,
    decoder_reason,
    file_bytes,
    open_image,
    orientation,
    printable,
)
from cnnctl.data.palette import Colour, voc_palette
from cnnctl.errors import Exit, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMATS = ("PNG", "BMP", "TIFF")  # GIF not: what writes it renumbers the palette
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3  # PNG's colour types; 4 and 6 have alpha
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow's modes of grey with 16 bits and more
_STRETCHED = {2: 85, 4: 17}  # bits of grey -> what Pillow multiplies the value with


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """The numbers in a mask file, (h, w) uint8 as they are stored.

    Raises:
        UserError: the file is absent, damaged, no lossless image, or of colours (code 3).
    """
    return _read(path, _indices)


def read_numbers(path: str | os.PathLike[str]) -> Tensor:
    """As ``read_mask``, but of up to 16 bits a pixel (of a TIFF 32): the numbers of instances.

    Returns:
        (h, w) uint8 of a file with 8 bits, int32 of one with more.
    """
    return _read(path, _numbers, deep=True)


def read_colours(path: str | os.PathLike[str]) -> Tensor:
    """The colours in a mask file, (h, w, 3) uint8; a palette's and grey ones as RGB.

    Raises:
        UserError: as ``read_mask``, but for colours.
    """
    return _read(path, _colours)


def write_mask(path: str | os.PathLike[str], mask: Tensor, palette: Sequence[Colour] = ()) -> None:
    """A palette PNG of class numbers, as VOC's own tools read them; whole or not at all.

    Args:
        mask: (h, w) uint8, 255 = void.
        palette: the colours of the first classes; all others have VOC's.

    Raises:
        OSError: it cannot be written.
        ValueError: the mask is no (h, w) uint8 with pixels, or the palette has over 256 colours.
    """
    from PIL import Image

    if mask.ndim != 2 or mask.dtype != torch.uint8 or not mask.numel():
        raise ValueError(f"a mask is (h, w) uint8, not {tuple(mask.shape)} {mask.dtype}")
    colours = (*palette, *voc_palette()[len(palette) :])
    if len(colours) > 256:
        raise ValueError(f"a palette has at most 256 colours, not {len(colours)}")
    h, w = mask.shape
    image = Image.frombytes("P", (w, h), mask.cpu().contiguous().numpy().tobytes())
    image.putpalette([level for colour in colours for level in colour])
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_Take = Callable[[bytearray, "Image"], np.ndarray]


def _read(path: str | os.PathLike[str], take: _Take, *, deep: bool = False) -> Tensor:
    try:
        return torch.from_numpy(_decode(file_bytes(path), take, deep))
    except ValueError as error:
        raise UserError(str(error), file=printable(path), code=Exit.DATA) from None


def _decode(raw: bytearray, take: _Take, deep: bool) -> np.ndarray:
    """``take`` of the opened image; raises ValueError saying what is wrong with the bytes.

    Args:
        deep: more than 8 bits a pixel are wanted too.
    """
    if raw.startswith(_PNG):
        _check_png(raw)
    image = open_image(raw)
    if image.format not in _FORMATS:
        raise ValueError(f"is {image.format}, which does not keep class numbers: save it as PNG")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ValueError(f"is too large: {size} is more than {MAX_PIXELS:,} pixels")
    _check_mode(raw, image, deep)
    try:
        turned = orientation(image) != 1
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ValueError(f"does not decode: {decoder_reason(error)}") from None
    if turned:
        raise ValueError("has an EXIF orientation, which a mask has not: save it without")
    return take(raw, image)


def _check_png(raw: bytearray) -> None:
    """The length and check sum of every chunk up to the last; raises ValueError."""
    view, at = memoryview(raw), len(_PNG)
    while at + 12 <= len(raw):
        (length,) = struct.unpack_from(">I", raw, at)
        kind, end = bytes(raw[at + 4 : at + 8]), at + 12 + length
        if end > len(raw):
            break
        (expected,) = struct.unpack_from(">I", raw, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != expected:
            raise ValueError(f"is damaged: the check sum of its {kind!r} at byte {at:,} is wrong")
        if kind == b"IEND":
            return
        at = end
    raise ValueError(f"is cut off: {len(raw):,} bytes without an end of the PNG")


def _check_mode(raw: bytearray, image: Image, deep: bool) -> None:
    """Refuse what holds no class numbers and no colours."""
    mode = image.mode
    if image.format == "PNG":
        depth, kind = raw[24], raw[25]
        if depth == 16 and not deep:
            raise ValueError("has 16 bits a channel, a mask has 8: classes are 0 to 254")
        if kind not in (_GREY, _RGB, _PALETTE):
            raise ValueError("has an alpha channel, which a mask has not: save it without")
    elif deep and mode == "F":
        raise ValueError("holds floating-point numbers where whole ones were expected")
    elif deep and mode in _DEEP:
        return
    elif mode not in ("1", "L", "P", "RGB"):
        raise ValueError(f"is {image.format} of mode {mode}, a mask is 8-bit grey, palette or RGB")


def _indices(raw: bytearray, image: Image) -> np.ndarray:
    """(h, w) uint8 of a palette or grey image."""
    if image.mode == "RGB":
        raise ValueError("is RGB where class numbers (a palette or 8-bit grey PNG) were expected")
    values = np.array(image, dtype=np.uint8)  # of 1 bit: False and True become 0 and 1
    if image.format == "PNG" and raw[25] == _GREY and raw[24] in _STRETCHED:
        values //= _STRETCHED[raw[24]]
    return values


def _numbers(raw: bytearray, image: Image) -> np.ndarray:
    """(h, w) uint8, or int32 where it has more than 8 bits."""
    if image.mode == "RGB":
        raise ValueError(
            "is of colours where numbers of instances (a palette or grey PNG, 8 or 16 bits) were "
            "expected"
        )
    if image.mode not in _DEEP:
        return _indices(raw, image)
    values = np.array(image).astype(np.int32)
    if values.min() < 0:
        raise ValueError(f"holds the number {values.min()}: an instance's is above 0")
    return values


def _colours(raw: bytearray, image: Image) -> np.ndarray:
    """(h, w, 3) uint8."""
    return np.array(image.convert("RGB"))
