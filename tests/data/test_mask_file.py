"""Mask files: values come back as stored, and everything odd is refused in a sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data.mask_file import read_colours, read_mask, write_mask
from cnnctl.data.mask_values import Colours, Values
from cnnctl.data.palette import voc_palette
from cnnctl.errors import Exit, UserError

GRID = torch.tensor([[0, 1, 2], [20, 254, 255]], dtype=torch.uint8)


def png(path: Path, depth: int, kind: int, rows: list[bytes], width: int) -> Path:
    """A PNG of these packed rows, written by hand from the format's description."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    palette = chunk(b"PLTE", bytes(range(12))) if kind == 3 else b""
    chunks = chunk(b"IHDR", header) + palette + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def turned(path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("L", (3, 2)).save(path, form, exif=exif)


def test_what_is_written_is_read_and_has_vocs_palette(tmp_path):
    write_mask(tmp_path / "a.png", GRID)
    assert torch.equal(read_mask(tmp_path / "a.png"), GRID)
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "P"
    assert image.getpalette() == [level for colour in voc_palette() for level in colour]
    assert np.array_equal(np.array(image.convert("RGB"))[1, 2], (224, 224, 192))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_palette_of_ones_own(tmp_path):
    write_mask(tmp_path / "a.png", GRID, [(1, 2, 3), (4, 5, 6)])
    expected = [(1, 2, 3), (4, 5, 6), (0, 128, 0), (0, 64, 128), voc_palette()[254]]
    assert read_colours(tmp_path / "a.png").reshape(-1, 3)[:5].tolist() == [*map(list, expected)]


def test_a_mask_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="a mask is"):
        write_mask(tmp_path / "a.png", GRID.int())
    with pytest.raises(ValueError, match="at most 256"):
        write_mask(tmp_path / "a.png", GRID, [(0, 0, 0)] * 257)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OSError, match=r"b\.png"):
        write_mask(tmp_path / "b.png", GRID)
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"], "no temporary file is left"


@pytest.mark.parametrize(
    ("depth", "kind", "row", "values"),
    [
        (1, 0, b"\xa0", [1, 0, 1]),
        (2, 0, b"\x1b", [0, 1, 2, 3]),
        (4, 0, b"\x0f\x20", [0, 15, 2]),
        (8, 0, b"\x00\x07\xff", [0, 7, 255]),
        (1, 3, b"\xa0", [1, 0, 1]),
        (2, 3, b"\x1b", [0, 1, 2, 3]),
        (4, 3, b"\x03\x20", [0, 3, 2]),
        (8, 3, b"\x00\x03\x01", [0, 3, 1]),
    ],
)
def test_values_are_those_in_the_file_at_every_depth(tmp_path, depth, kind, row, values):
    path = png(tmp_path / "a.png", depth, kind, [row, row], len(values))
    assert read_mask(path).tolist() == [values, values]


@pytest.mark.parametrize("extension", ["bmp", "tif"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_other_lossless_formats(tmp_path, extension, mode):
    image = Image.fromarray(GRID.numpy())
    if mode == "P":
        image = Image.frombytes("P", (3, 2), GRID.numpy().tobytes())
        image.putpalette([level for colour in voc_palette() for level in colour])
    image.save(tmp_path / f"a.{extension}")
    assert torch.equal(read_mask(tmp_path / f"a.{extension}"), GRID)


def test_colours(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_colours(tmp_path / "a.png").numpy(), pixels)
    Image.fromarray(GRID.numpy()).save(tmp_path / "b.png")
    assert torch.equal(read_colours(tmp_path / "b.png"), GRID[..., None].expand(2, 3, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Image.new("RGB", (3, 2)).save(p), "is RGB where class numbers"),
        (lambda p: Image.new("RGBA", (3, 2)).save(p), "has an alpha channel"),
        (lambda p: Image.new("LA", (3, 2)).save(p), "has an alpha channel"),
        (lambda p: Image.new("I;16", (3, 2)).save(p), "has 16 bits a channel"),
        (lambda p: png(p, 16, 2, [bytes(6)], 1), "has 16 bits a channel"),
        (lambda p: Image.new("L", (3, 2)).save(p, "JPEG"), "is JPEG, which does not keep class"),
        (lambda p: Image.new("P", (3, 2)).save(p, "GIF"), "is GIF, which does not keep class"),
        (lambda p: turned(p, "PNG"), "has an EXIF orientation, which a mask has not"),
        (lambda p: turned(p, "TIFF"), "has an EXIF orientation, which a mask has not"),
        (lambda p: Image.new("F", (3, 2)).save(p, "TIFF"), "is TIFF of mode F"),
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda p: p.write_text("<!doctype html>"), "is a web page"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: None, "there is no such file"),
    ],
)
def test_files_that_are_no_masks(tmp_path, make, words):
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(UserError, match=words) as caught:
        read_mask(path)
    assert caught.value.file == str(path)
    assert caught.value.code == Exit.DATA


def test_a_cut_or_a_flipped_bit_is_an_error_and_never_another_class(tmp_path):
    path = tmp_path / "a.png"
    write_mask(path, GRID)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError):
            read_mask(path)
    for position in range(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_mask(path)


# What the values mean.


def test_values_as_they_are():
    mask = torch.tensor([[0, 3, 255]], dtype=torch.uint8)
    assert torch.equal(Values(range(4)).classes(mask), mask)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        Values(range(3)).classes(mask)
    assert str(caught.value) == (
        "value 3 at row 0, column 1 (1 pixels are wrong) is no class: the 3 are 0 to 2, void is 255"
    )


def test_values_that_stand_for_classes():
    membrane = Values([0, 255], void=None)
    mask = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)
    assert membrane.classes(mask).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"value 254 at row 1, column 1 .* the 2 are 0, 255$"):
        membrane.classes(torch.tensor([[0, 255], [255, 254]], dtype=torch.uint8))
    gapped = Values([7, 0, 200], void=9)
    found = gapped.classes(torch.tensor([[7, 0, 200, 9]], dtype=torch.uint8))
    assert found.tolist() == [[0, 1, 2, 255]]
    shifted = Values(range(3), void=100)
    assert shifted.classes(torch.tensor([[2, 100]], dtype=torch.uint8)).tolist() == [[2, 255]]
    with pytest.raises(ValueError, match="value 255"):
        shifted.classes(torch.tensor([[2, 255]], dtype=torch.uint8))
    no_void = Values(range(3), void=None)
    with pytest.raises(ValueError, match=r"value 255 .* the 3 are 0 to 2$"):
        no_void.classes(torch.tensor([[2, 255]], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "void", "words"),
    [
        ([], 255, "1 to 255 classes, not 0"),
        (range(256), None, "1 to 255 classes, not 256"),
        ([0, 256], 255, "0 to 255, not 256"),
        ([0, 1], -1, "0 to 255, not -1"),
        ([0, 0], 255, "value 0 cannot stand for two"),
        ([0, 255], 255, "value 255 cannot stand for two"),
    ],
)
def test_values_that_contradict_themselves(values, void, words):
    with pytest.raises(ValueError, match=words):
        Values(values, void)


def test_colours_of_classes():
    table = Colours([(0, 0, 0), (128, 0, 0), (0, 0, 1)], void=[(224, 224, 192)])
    row = [[0, 0, 0], [0, 0, 1], [224, 224, 192], [128, 0, 0]]
    assert table.classes(torch.tensor([row], dtype=torch.uint8)).tolist() == [[0, 2, 255, 1]]
    row[3] = [0, 128, 0]
    with pytest.raises(ValueError, match=r"colour \[0, 128, 0\] at row 0, column 3 .* 3 classes'"):
        table.classes(torch.tensor([row], dtype=torch.uint8))


@pytest.mark.parametrize(
    ("colours", "void", "words"),
    [
        ([], [], "1 to 255 classes"),
        ([(0, 0, 256)], [], "0 to 255"),
        ([(0, 0, 1), (0, 0, 1)], [], "two classes"),
        ([(0, 0, 1)], [(0, 0, 1)], "two classes"),
    ],
)
def test_colours_that_contradict_themselves(colours, void, words):
    with pytest.raises(ValueError, match=words):
        Colours(colours, void)
