"""read_image: what becomes of each kind of file, and what is said of each kind of damage."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnctl.data import image_file
from cnnctl.data.image_file import MAX_PIXELS, printable, read_annotated, read_image
from cnnctl.errors import Exit, UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torchvision"),
]

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)  # H, W, C
GREY = COLOUR[:, :, 0]
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def save(folder: Path, name: str, image: Image.Image, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def png(pixels: np.ndarray, colour_type: int, depth: int = 16) -> bytes:
    """A PNG by the book (RFC 2083), as Pillow writes no 16-bit colour; pixels (H, W, C)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(array)).permute(2, 0, 1)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> torch.Tensor:
    """The definition of compositing, in floating point."""
    share = np.atleast_3d(alpha) / 255
    return chw(np.floor(np.atleast_3d(colour) * share + 255 * (1 - share) + 0.5).astype(np.uint8))


@pytest.fixture(params=["torchvision", "Pillow alone"])
def either_decoder(request, monkeypatch):
    if request.param == "Pillow alone":
        monkeypatch.setattr(image_file, "_torchvision_decoder", lambda: None)
    return request.param


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "webp"])
@pytest.mark.usefixtures("either_decoder")
def test_lossless_colour_is_exact(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {}
    path = save(tmp_path, f"a.{kind}", Image.fromarray(COLOUR), **options)
    assert torch.equal(read_image(path), chw(COLOUR))


@pytest.mark.usefixtures("either_decoder")
def test_jpeg_is_as_pillow_decodes_it(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(50))[..., None] + np.array([0, 40, 80])
    path = save(tmp_path, "a.jpg", Image.fromarray(smooth.astype(np.uint8)), quality=90)
    assert torch.equal(read_image(path), chw(np.array(Image.open(path))))


@pytest.mark.usefixtures("either_decoder")
def test_grey_becomes_three_equal_channels_or_stays_one(tmp_path):
    path = save(tmp_path, "a.png", Image.fromarray(GREY))
    assert torch.equal(read_image(path), chw(GREY).repeat(3, 1, 1))
    assert torch.equal(read_image(path, channels=1), chw(GREY))


def test_colour_to_grey_is_pillows_luma(tmp_path):
    path = save(tmp_path, "a.png", Image.fromarray(COLOUR))
    assert torch.equal(read_image(path, 1), chw(np.array(Image.fromarray(COLOUR).convert("L"))))


@pytest.mark.usefixtures("either_decoder")
def test_transparency_is_laid_on_white(tmp_path):
    rgba = save(tmp_path, "a.png", Image.fromarray(np.dstack([COLOUR, ALPHA])))
    assert torch.equal(read_image(rgba), on_white(COLOUR, ALPHA))
    la = save(tmp_path, "b.png", Image.fromarray(np.dstack([GREY, ALPHA]), "LA"))
    assert torch.equal(read_image(la, 1), on_white(GREY, ALPHA))
    assert torch.equal(read_image(la), on_white(GREY, ALPHA).repeat(3, 1, 1))


@pytest.mark.usefixtures("either_decoder")
def test_a_transparent_colour_is_laid_on_white(tmp_path):
    path = save(
        tmp_path, "a.png", Image.fromarray(COLOUR), transparency=tuple(COLOUR[2, 3].tolist())
    )
    expected = chw(COLOUR.copy())
    expected[:, 2, 3] = 255
    assert torch.equal(read_image(path), expected)


def test_palettes(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)]
    palette.putpalette([value for colour in colours for value in colour])
    expected = chw(np.array(colours, np.uint8).reshape(2, 2, 3))
    assert torch.equal(read_image(save(tmp_path, "a.png", palette)), expected)
    assert torch.equal(read_image(save(tmp_path, "a.gif", palette)), expected)
    expected[:, 1, 0] = 255  # entry 2 is transparent
    assert torch.equal(read_image(save(tmp_path, "b.png", palette, transparency=2)), expected)


def test_one_bit(tmp_path):
    bits = Image.fromarray(GREY > 127)
    expected = chw((GREY > 127).astype(np.uint8) * 255)
    for name in ("a.png", "a.tiff", "a.pbm"):
        assert torch.equal(read_image(save(tmp_path, name, bits), 1), expected)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    red = Image.new("RGB", (16, 16), (250, 10, 20)).convert("CMYK")
    mean = read_image(save(tmp_path, "a.jpg", red, quality=95)).float().mean((1, 2))
    assert torch.allclose(mean, torch.tensor([250.0, 10.0, 20.0]), atol=6)


@pytest.mark.usefixtures("either_decoder")
def test_16_bit_grey_keeps_its_range(tmp_path):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = chw(np.round(deep / 257).astype(np.uint8))
    for name in ("a.png", "a.tiff", "a.pgm"):
        path = save(tmp_path, name, Image.fromarray(deep))
        assert torch.equal(read_image(path, 1), expected), name
    assert torch.equal(torch.unique(read_image(tmp_path / "a.png")), torch.arange(256).byte())


def test_16_bit_colour_is_within_a_level_of_its_range(tmp_path):
    deep = RNG.integers(0, 65536, (50, 70, 4)).astype(np.uint16)
    deep[0, 0], deep[0, 1] = 65535, 0
    (tmp_path / "rgb.png").write_bytes(png(deep[..., :3], 2))
    found = read_image(tmp_path / "rgb.png").int()
    assert (found - chw(np.round(deep[..., :3] / 257).astype(np.int32))).abs().max() <= 1
    assert found[:, 0, 0].tolist() == [255] * 3
    (tmp_path / "rgba.png").write_bytes(png(deep, 6))
    eight = (deep >> 8).astype(np.uint8)
    assert torch.equal(read_image(tmp_path / "rgba.png"), on_white(eight[..., :3], eight[..., 3]))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    red = torch.tensor([255, 0, 0]).byte()[:, None, None].expand(3, 3, 4)
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        path = save(
            tmp_path, name, frames[0], save_all=True, append_images=frames[1:],
            **({"lossless": True} if name == "a.webp" else {}),
        )  # fmt: skip
        assert torch.equal(read_image(path), red), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.usefixtures("either_decoder")
def test_exif_orientation(tmp_path, name, orientation):
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 16, 8))  # a white corner, top left in the file
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 100}
    found = read_image(save(tmp_path, name, image, exif=exif, **options), 1)[0] > 127
    # EXIF 2.3, table of 4.6.4: where the file's row 0 and column 0 are shown.
    corner = {
        1: (0, 0),
        2: (0, 1),
        3: (1, 1),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (1, 1),
        8: (1, 0),
    }
    height, width = (16, 32) if orientation < 5 else (32, 16)
    assert found.shape == (height, width)
    bottom, right = corner[orientation]
    quarter = found.reshape(2, height // 2, 2, width // 2).float().mean((1, 3))
    assert quarter[bottom, right] == 1
    assert quarter.sum() == 1


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'>%s</x:xmpmeta>"
TURNED = (
    b"<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description "
    b"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\"6\"/></rdf:RDF>"
)
EXIF_TAG = struct.pack(">H", 1) + struct.pack(">HHI", 0x0112, 4, 1) + struct.pack(">II", 6, 0)
EXIF_LONG = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + EXIF_TAG
EXIF_SHORT = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)


@pytest.mark.parametrize(
    "segments",
    [[EXIF_SHORT], [XMP % b"", EXIF_SHORT], [EXIF_LONG], [XMP % TURNED]],
    ids=["exif", "exif behind XMP", "exif of a LONG", "XMP alone"],
)
@pytest.mark.usefixtures("either_decoder")
def test_orientation_wherever_a_jpeg_says_it(tmp_path, segments):
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 32, 8))  # white above, which orientation 6 shows on the right
    raw = save(tmp_path, "a.jpg", image, quality=100).read_bytes()
    said = b"".join(b"\xff\xe1" + struct.pack(">H", len(text) + 2) + text for text in segments)
    (tmp_path / "a.jpg").write_bytes(raw[:2] + said + raw[2:])
    found = read_image(tmp_path / "a.jpg", 1)[0] > 127
    assert torch.equal(found, (torch.arange(16) >= 8).expand(32, 16))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.usefixtures("either_decoder")
def test_an_annotation_tells_by_its_size_whether_its_image_is_turned(
    tmp_path, name, orientation, side
):
    image = Image.new("L", (32, side))
    image.paste(255, (0, 0, 16, side // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, name, image, exif=exif)
    as_stored, as_shown = torch.from_numpy(np.array(image))[None], read_image(path, 1)
    shown = tuple(as_shown.shape[1:])
    told = orientation == 1 or (orientation > 4 and side < 32)
    for size in {(side, 32), shown}:
        if told and (size == shown or name != "a.tif"):
            expected = as_shown if size == shown else as_stored
            assert torch.equal(read_annotated(path, size, 1), expected)
        elif told:  # Pillow turns a TIFF by itself
            assert read_annotated(path, size, 1).shape[1:] == shown
        else:
            with pytest.raises(UserError, match=f"has EXIF orientation {orientation}, and the siz"):
                read_annotated(path, size, 1)
            if name != "a.tif":
                assert torch.equal(read_annotated(path, size, 1, stored=True), as_stored)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_none(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = save(tmp_path, "a.png", Image.fromarray(GREY), exif=exif)
    assert torch.equal(read_annotated(path, (6, 9), 1)[0], torch.from_numpy(GREY))


def tiff(pixels: np.ndarray, photometric: int) -> bytes:
    """A grey TIFF by the book (6.0, section 4), of uint8 or uint16 (H, W)."""
    (height, width), depth = pixels.shape, 8 * pixels.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = [
        *[(256, width), (257, height), (258, depth), (259, 1), (262, photometric)],
        *[(273, 8), (277, 1), (278, height), (279, len(data))],
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return start + struct.pack("<H", len(entries)) + directory + bytes(4)


@pytest.mark.parametrize(("photometric", "expected"), [(1, [0, 10, 255]), (0, [255, 245, 0])])
@pytest.mark.parametrize("factor", [1, 257])
def test_a_tiff_whose_zero_is_white(tmp_path, photometric, expected, factor):
    dtype = np.uint8 if factor == 1 else np.uint16
    pixels = (np.array([[0, 10, 255]]) * factor).astype(dtype)
    (tmp_path / "a.tiff").write_bytes(tiff(pixels, photometric))
    assert read_image(tmp_path / "a.tiff", 1).flatten().tolist() == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_grey_is_laid_on_white(tmp_path, depth):
    factor = 257 if depth == 16 else 1
    raw = png((np.array([[0, 4, 117]]) * factor)[..., None], 0, depth)
    data = b"tRNS" + struct.pack(">H", 4 * factor)
    chunk = struct.pack(">I", 2) + data + struct.pack(">I", zlib.crc32(data))
    at = raw.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(raw[:at] + chunk + raw[at:])
    assert read_image(tmp_path / "a.png", 1).flatten().tolist() == [0, 255, 117]


def test_odd_shapes(tmp_path):
    for width, height in ((1, 1), (5000, 1), (1, 5000), (20000, 2)):
        path = save(tmp_path, "a.png", Image.new("RGB", (width, height), (1, 2, 3)))
        assert read_image(path).shape == (3, height, width)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.usefixtures("either_decoder")
def test_a_file_that_is_cut_off_is_an_error(tmp_path, kind, share):
    whole = encoded(kind)
    path = tmp_path / "cut.img"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert caught.value.code == Exit.DATA
    assert str(caught.value).startswith(f"{path}: ")
    assert "BytesIO" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


def test_a_jpeg_without_its_last_byte_is_an_error(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG")[:-1])
    with pytest.raises(UserError, match=r"does not decode: .*truncated"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_flipped_bits_give_pixels_or_one_sentence(tmp_path, kind):
    """Fuzzing: nothing but UserError comes out, and the process survives (capital for PNG)."""
    whole, path = encoded(kind), tmp_path / "a.img"
    rng = np.random.default_rng(1)
    for _ in range(60):
        raw = bytearray(whole)
        for at in rng.integers(0, min(len(raw), int(rng.choice([100, 10**9]))), 3):
            raw[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        try:
            image = read_image(path)
        except UserError:
            continue
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def test_a_png_with_a_flipped_bit_is_an_error(tmp_path):
    raw = bytearray(encoded("PNG"))
    raw[len(raw) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(UserError, match="does not decode"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (bytes(1000), "nothing but zeros"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\xff\xd8\xff\xe0", "JPEG file without a readable header"),
        (b"just text", "no image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    ],
)
def test_what_is_no_image(tmp_path, raw, words):
    (tmp_path / "a.jpg").write_bytes(raw)
    with pytest.raises(UserError, match=words) as caught:
        read_image(tmp_path / "a.jpg")
    assert caught.value.file == str(tmp_path / "a.jpg")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="is a directory"):
        read_image(tmp_path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="no ordinary file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = save(tmp_path, "a.png", Image.fromarray(COLOUR))
    path.chmod(0)
    with pytest.raises(UserError, match="permission denied"):
        read_image(path)


@pytest.mark.parametrize("side", [9500, 12000, 14000])  # Pillow is silent to 9459, raises at 13378
def test_a_decompression_bomb_is_refused_in_one_sentence(tmp_path, side):
    path = save(tmp_path, "bomb.png", Image.new("1", (side, side)))
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError, match="too large"):
        read_image(path)
    assert side * side > MAX_PIXELS
    assert len([w for w in said if "bomb" in str(w.message)]) <= 1


def test_numbers_without_a_range_are_refused(tmp_path):
    path = save(tmp_path, "a.tiff", Image.fromarray(GREY.astype(np.float32)))
    with pytest.raises(UserError, match="no fixed range"):
        read_image(path)


def test_channels():
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        read_image("a.png", channels=4)


def test_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.png"))
    Image.fromarray(COLOUR).save(name)
    assert torch.equal(read_image(name), chw(COLOUR))
    Path(name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_image(name)
    assert str(caught.value).encode("utf-8").endswith(rb"caf\xe9.png: is empty (0 bytes)")
    assert printable(name).endswith(r"caf\xe9.png")


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    path = save(tmp_path, "a.webp", Image.fromarray(COLOUR), lossless=True, exif=b"Exif\0\0garbage")
    assert torch.equal(read_image(path), chw(COLOUR))
