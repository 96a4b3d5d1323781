"""Masks move exactly as their images do: each channel shows one, and shows it afterwards.

Every option that says that it moves masks is tested by being there.
"""

from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class

from cnnctl import compose
from cnnctl.data.augmentations import copy_paste
from cnnctl.data.augmentations.base import Augmentation, resize, scaled_boxes
from cnnctl.data.augmentations.copy_paste import CopyPaste
from cnnctl.data.augmentations.mosaic import Mosaic
from cnnctl.data.augmentations.short_side import ShortSide
from cnnctl.data.windows import Windows
from cnnctl.ops.masks import cropped, pack, whole_mask
from cnnctl.randomness import Draw
from cnnctl.structures import Images, Targets, collate

VOID = 2  # the channel of what is nobody's; of the others each is the mask of its class
BIG = 500  # pixels: of a small mask the pixels at its edge are too large a part
STILL = {"exposure": 1.0, "saturation": 1.0, "colour": False}


def options() -> dict[str, type[Augmentation]]:
    """The options that move masks, by name; a task's own is another name of one of them."""
    found = {}
    for file in sorted((compose.conf_dir() / "augmentation").glob("*.yaml")):
        node = yaml.safe_load(file.read_text())
        if "_target_" in node and "masks" in (cls := get_class(node["_target_"])).moves:
            found[file.stem] = cls
    return found


OPTIONS = options()


def shape(h: int, w: int, x: float, seed: int) -> torch.Tensor:
    """(h, w) bool: an ellipse at ``x`` of the width without its upper left quarter."""
    random = torch.Generator().manual_seed(seed)
    across, down, y = (torch.rand(3, generator=random) * 0.3 + 0.7).tolist()
    line, column = (torch.arange(h)[:, None] + 0.5) / h, (torch.arange(w) + 0.5) / w
    off = ((column - x) / (0.16 * across)) ** 2 + ((line - 0.55 * y) / (0.38 * down)) ** 2
    return (off < 1) & ~((column < x) & (line < 0.55 * y))


def scene(h: int, w: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """(3, h, w) uint8, two objects and void side by side, and the truth."""
    masks = [shape(h, w, x, seed * 3 + n) for n, x in enumerate((0.18, 0.5, 0.82))]
    if seed % 2:
        masks[0], masks[1] = masks[1], masks[0]
    crops, frames = zip(*(cropped(mask) for mask in masks), strict=True)
    bits, where = pack(crops)
    rows = torch.zeros(2, dtype=torch.bool)
    return torch.stack(masks).to(torch.uint8) * 255, {
        "boxes": torch.stack(frames[:2]),
        "labels": torch.arange(2),
        "crowd": rows,
        "difficult": rows,
        "area": torch.stack(masks[:2]).sum((1, 2)).float(),
        "frames": torch.stack(frames[:2]),
        "crops": where[:2],
        "bits": bits,
        "void_frame": frames[2],
        "void_crop": where[2],
    }


def batch_of(samples: list[Any]) -> tuple[Images, Any]:
    batch = collate([(n, *sample) for n, sample in enumerate(samples)])
    return batch.images, batch.targets


def made(cls: type[Augmentation], native: tuple[int, int] | None, **options: Any) -> Augmentation:
    known = cls.__init__.__code__.co_varnames
    values = {k: v for k, v in {**STILL, **options}.items() if k in known}
    if native is None and "size" not in values:
        values["size"] = 100
    return cls(num_classes=3, mirror=True, native=native, **values)


def augmented(
    pipeline: Augmentation, images: Images, targets: Targets, seed: int = 0, epoch: int = 0
) -> tuple[Images, Any]:
    return pipeline.batch(images, targets, Draw(seed, epoch, targets.image_id))


def inside(box: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(h, w) bool: pixels with their centre in a box."""
    left, top, right, bottom = box
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    return ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))


def seen(targets: Any, n: int, size: tuple[int, int]) -> list[tuple[int, int, torch.Tensor]]:
    """(row, class, mask (h, w) inside of its box) of each object of an image."""
    found = []
    for row, label in enumerate(targets.labels[n].tolist()):
        if label >= 0:
            mask = whole_mask(targets.bits[n], targets.crops[n, row], targets.frames[n, row], size)
            found.append((row, label, mask & inside(targets.boxes[n, row], size)))
    return found


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


def check(images: Images, targets: Any, close: float = 0.94, reach: float = 2.0) -> int:
    """Each mask is what its channel shows in its box; how many were large enough to be looked at.

    Args:
        close: the least overlap of a mask and what is shown.
        reach: how far the box of a mask, which no edge cut, may be from the box in the truth.
    """
    size, looked = (images.pixels.shape[2], images.pixels.shape[3]), 0
    for n, image in enumerate(images.pixels):
        shown = image >= 128
        objects = seen(targets, n, size)
        for row, label, mask in objects:
            there = shown[label] & inside(targets.boxes[n, row], size)
            for other, its, hidden in objects:
                if its == label and other != row:
                    there &= ~hidden
            if there.sum() > BIG:
                looked += 1
                assert overlap(mask, there) > close, (n, row)
            corners = targets.frames[n, row].view(2, 2)
            low, high = corners.amin(0), corners.amax(0)
            if torch.allclose(torch.cat([low, high]), targets.boxes[n, row], atol=1e-3):
                tight = cropped(mask)[1]
                assert (tight - targets.boxes[n, row]).abs().max() <= reach or mask.sum() < 50
        void = whole_mask(targets.bits[n], targets.void_crop[n], targets.void_frame[n], size)
        if shown[VOID].sum() > BIG:
            looked += 1
            assert overlap(void, shown[VOID]) > close, n
    return looked


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_moves_masks_of_streamed_images(name, monkeypatch):
    monkeypatch.setattr(copy_paste, "LEAST", 0.0)  # what shows little is in the truth, too
    pipeline, looked = made(OPTIONS[name], None, size=128), 0
    torch.manual_seed(0)
    for epoch in range(3):
        samples = [pipeline.joint(*scene(90 + 9 * n, 150 - 7 * n, n)) for n in range(6)]
        images, targets = batch_of(samples)
        images, targets = augmented(pipeline, images, targets, 0, epoch)
        looked += check(images, targets)
    assert looked > 15


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_moves_masks_of_resident_images(name, monkeypatch):
    monkeypatch.setattr(copy_paste, "LEAST", 0.0)
    pipeline, looked = made(OPTIONS[name], (110, 130)), 0
    for epoch in range(3):
        images, targets = batch_of([scene(110, 130, n) for n in range(6)])
        images, targets = augmented(pipeline, images, targets, 0, epoch)
        looked += check(images, targets)
    assert looked > 15


def test_resized_as_a_whole_data_set():
    """What the resident loader does once."""
    images, targets = batch_of([scene(110, 130, n) for n in range(4)])
    truth = {name: c for name, c in vars(targets).items() if c is not None}
    moved = Targets(**truth | scaled_boxes(truth, (110, 130), (96, 96)))
    images.pixels = resize(images.pixels, (96, 96))
    assert check(images, moved) == 12


def test_a_mirrored_mask_is_exactly_the_mirror_image():
    pipeline = made(ShortSide, (110, 130))
    images, targets = batch_of([scene(110, 130, n) for n in range(8)])
    before = images.pixels.clone()
    images, targets = augmented(pipeline, images, targets)
    turned = targets.frames[:, 0, 0] > targets.frames[:, 0, 2]
    assert 0 < turned.sum() < 8
    assert torch.equal((images.pixels != before).flatten(1).any(1), turned)
    assert check(images, targets, 0.9999, 0.0) == 24


@pytest.mark.parametrize("mirror", [False, True])
def test_a_window_that_is_not_resized_cuts_exactly(mirror):
    """In a worker and on the device; the crop reaches out of the image."""
    samples = [scene(96, 96, n) for n in range(4)]
    images, targets = batch_of(samples)
    rectangles = torch.tensor([[-10.0, 5, 86, 101], [20, 20, 116, 116], [0, -50, 96, 46]])
    rectangles = torch.cat([rectangles, torch.tensor([[-40.0, 3, 56, 99]])])
    turn, kept = torch.full((4,), mirror), torch.ones(4, 2, dtype=torch.bool)
    fill, alone = torch.zeros(1, 1, 1, dtype=torch.uint8), []
    for n, (image, truth) in enumerate(samples):
        one = Windows(rectangles[n : n + 1], turn[:1], kept[:1])
        alone.append(one.sample(image, truth, (96, 96), fill))
    Windows(rectangles, turn, kept).batch(images, targets, fill)
    streamed, moved = batch_of(alone)
    assert torch.equal(streamed.pixels.float(), images.pixels)
    for name in samples[0][1]:
        assert torch.equal(getattr(moved, name), getattr(targets, name)), name
    assert check(images, targets, 0.9999, 0.0) > 6


def test_frames_of_a_window_by_hand():
    """(10, 10) - (50, 50) to 20 x 80: a crop that reaches out is not cut, and then is mirrored."""
    image, truth = torch.zeros(1, 60, 60, dtype=torch.uint8), scene(60, 60, 0)[1]
    frame = torch.tensor([[0.0, 20, 30, 60]])
    rows = {name: truth[name][:1] for name in ("labels", "crowd", "difficult", "area", "crops")}
    truth = {**truth, **rows, "boxes": frame, "frames": frame, "void_frame": frame[0]}
    for mirror, expected in ((False, [-5, 20, 10, 100]), (True, [25, 20, 10, 100])):
        windows = Windows(
            torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([mirror]), torch.ones(1, 1).bool()
        )
        fill = torch.zeros(1, 1, 1, dtype=torch.uint8)
        _, moved = windows.sample(image, truth, (80, 20), fill)
        assert moved["frames"].tolist() == [expected]
        assert moved["void_frame"].tolist() == expected
        assert moved["boxes"].tolist() == [[10, 20, 20, 80] if mirror else [0, 20, 10, 80]]
        assert moved["area"] == truth["area"] * (10 * 60) / (30 * 40)


def test_rows_that_go_leave_no_frame():
    images, targets = batch_of([scene(96, 96, n) for n in range(8)])
    pipeline = made(OPTIONS["ssd"], (96, 96), zoom_out=1.0)
    _, targets = augmented(pipeline, images, targets, 1)
    gone = targets.labels == -1
    assert gone.any()
    for name in ("frames", "crops", "boxes"):
        assert not getattr(targets, name)[gone].any()
        assert getattr(targets, name)[~gone].any(1).all()


# Several images in one.


def test_a_mosaic_of_uneven_bits():
    """The bits of four images behind one another; void is drawn anew, in whole pixels."""
    pipeline = made(Mosaic, (110, 130), probability=1.0, jitter=0.0, flip=False)
    images, targets = batch_of([scene(110, 130, n) for n in range(5)])
    length = targets.bits.shape[1]
    images, targets = augmented(pipeline, images, targets)
    assert targets.labels.shape == (5, 8)
    assert targets.bits.shape[1] == 4 * length + 110 * 17
    assert (targets.crops[:, 2:4][targets.labels[:, 2:4] >= 0][:, 0] >= length).all()
    assert check(images, targets) > 10


def painted(rows: list[list[int]], number: int, side: int = 20) -> tuple[torch.Tensor, Any]:
    """Solid objects xyxy, each with a grey of its own but for a pixel in its corner."""
    image = torch.full((3, side, side), 200 + number, dtype=torch.uint8)
    masks = []
    for row, (left, top, right, bottom) in enumerate(rows):
        mask = torch.zeros(side, side, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        mask[top, left] = False
        image[:, mask] = 100 * number + row
        masks.append(mask)
    crops, frames = zip(*map(cropped, masks), strict=True) if masks else ((), ())
    bits, where = pack(crops)
    none = torch.zeros(len(rows), dtype=torch.bool)
    labels = torch.arange(len(rows)) + 100 * number
    return image, {
        "boxes": torch.stack(frames) if masks else torch.zeros(0, 4),
        "labels": labels, "crowd": none, "difficult": none,
        "area": 10 * torch.tensor([float(mask.sum()) for mask in masks]),
        "frames": torch.stack(frames) if masks else torch.zeros(0, 4),
        "crops": where, "bits": bits,
    }  # fmt: skip


def paste(samples: list[Any], seed: int = 0, **options: Any) -> tuple[Images, Any]:
    values = {"jitter": 0.0, "flip": False, "probability": 1.0, "share": 1.0, **options}
    size = (samples[0][0].shape[1], samples[0][0].shape[2])
    images, targets = batch_of(samples)
    return augmented(made(CopyPaste, size, **values), images, targets, seed)


def test_pasted_by_hand():
    """Objects lose their lower half, nothing under an open corner, all but a sixth, nothing."""
    old = [[0, 0, 4, 4], [10, 0, 14, 4], [0, 10, 5, 16], [10, 10, 13, 13]]
    new = [[0, 2, 4, 6], [13, 3, 16, 6], [0, 10, 5, 15]]
    images, targets = paste([painted(old, 0), painted(new, 1)])
    assert targets.labels[0].tolist() == [0, 1, -1, 3, 100, 101, 102, -1]
    assert targets.boxes[0, [0, 1, 3]].tolist() == [[0, 0, 4, 3], [10, 0, 14, 4], [10, 10, 13, 13]]
    # three and four pixels of the first, and one under the open corner of what is pasted
    assert targets.area[0].tolist()[:4] == pytest.approx([80, 150, 0, 80])
    for n in (0, 1):
        for _, label, mask in seen(targets, n, (20, 20)):
            assert torch.equal(mask, images.pixels[n, 0] == label)
    assert (images.pixels[0, 0, 10, 0] == 200).all()  # its box is pasted without its corner


def test_only_what_changes_is_packed_anew():
    samples = [painted([[0, 0, 4, 4], [10, 0, 14, 4]], 0), painted([[0, 2, 4, 6]], 1)]
    _, before = batch_of(samples)
    _, targets = paste(samples)
    length = before.bits.shape[1]
    assert torch.equal(targets.bits[:, :length], before.bits)
    assert torch.equal(targets.crops[0, 1], before.crops[0, 1])
    assert torch.equal(targets.crops[0, 2], before.crops[1, 0] + torch.tensor([length, 0, 0]))
    assert targets.crops[0, 0].tolist() == [2 * length, 3, 4]
    assert targets.frames[0, 0].tolist() == [0, 0, 4, 3]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_whatever_is_pasted_every_mask_is_what_the_picture_shows(share):
    """Random objects, those of one image apart or on one another; exactly, pixel by pixel."""
    random = torch.Generator().manual_seed(0)
    samples = []
    for number in range(2):  # labels of a third image would be no grey
        low = torch.randint(0, 40, (6, 2), generator=random)
        rows = torch.cat([low, low + torch.randint(4, 24, (6, 2), generator=random)], 1)
        samples.append(painted(rows.tolist(), number, 64))
    for sample in samples:  # each pixel to the one on top
        image, truth = sample
        masks = [image[0] == label for label in truth["labels"].tolist()]
        crops, frames = zip(*map(cropped, masks), strict=True)
        truth["bits"], truth["crops"] = pack(crops)
        truth["frames"] = truth["boxes"] = torch.stack(frames)
        truth["area"] = torch.tensor([float(mask.sum()) for mask in masks])
    lost = 0
    for seed in range(12):
        images, targets = paste(samples, seed, share=share)
        for n in range(2):
            shown = images.pixels[n, 0]
            for row, label, mask in seen(targets, n, (64, 64)):
                assert torch.equal(mask, shown == label)
                assert targets.area[n, row] == pytest.approx(float(mask.sum()), rel=1e-5)
                assert torch.equal(cropped(mask)[1], targets.boxes[n, row])
            gone = set(samples[n][1]["labels"].tolist()) - set(targets.labels[n].tolist())
            for label in gone:
                row = label % 100
                assert (shown == label).sum() < 0.2 * samples[n][1]["area"][row] + 1e-3
                lost += 1
    assert lost


def test_part_of_an_object_comes_with_the_one_around_it():
    """Two objects share pixels (COCO): one is chosen, and the other is as much of it as was."""
    inner, outer = [2, 2, 8, 8], [0, 0, 10, 7]
    found = set()
    for seed in range(30):
        first, second = painted([], 0), painted([inner, outer], 1)
        images, targets = paste([first, second], seed, share=0.5)
        kept = [label for label in targets.labels[0].tolist() if label >= 0]
        if kept and int((images.pixels[0, 0] != 200).sum()) == 69:  # the outer one alone
            assert kept == [100, 101]
            row = targets.labels[0].tolist().index(100)
            assert targets.boxes[0, row].tolist() == [2, 2, 8, 7]
            assert targets.area[0, row] == 10 * 29
            found.add("outer")
        elif kept == [100]:
            found.add("inner")
    assert found == {"outer", "inner"}


def test_what_is_nobodys_is_hidden_by_what_is_pasted():
    images, targets = batch_of([scene(96, 96, 0), scene(96, 96, 1)])
    targets.void_frame = targets.boxes[[1, 0], 0] + 5  # in part under the other's first object
    where = (targets.bits[0], targets.void_crop[0], targets.void_frame[0], (96, 96))
    before, hidden = whole_mask(*where), (images.pixels[1, :2] == 255).any(0)
    pipeline = made(CopyPaste, (96, 96), probability=1.0, share=1.0, jitter=0.0, flip=False)
    _, targets = augmented(pipeline, images, targets)
    where = (targets.bits[0], targets.void_crop[0], targets.void_frame[0], (96, 96))
    left = whole_mask(*where)
    assert torch.equal(left, before & ~hidden)
    assert 0 < left.sum() < before.sum()
