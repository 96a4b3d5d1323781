"""Pictures of instances: what is drawn of a batch and of an evaluation, and the verdicts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnctl.drawing import instance_mistakes, instance_pictures
from cnnctl.drawing.box_marks import class_colours
from cnnctl.drawing.box_pictures import MISSED
from cnnctl.drawing.instance_mistakes import CONFUSED, FOUND, cases_of, draw_mistakes, judged
from cnnctl.drawing.instance_pictures import SIDE, VOID, annotated
from cnnctl.drawing.pictures import WRONG
from cnnctl.metrics.instance import InstanceEvaluator
from cnnctl.ops.masks import cropped, pack
from cnnctl.ops.run_lengths import encode
from cnnctl.structures import Batch, Images, Predictions, Targets

CLASSES = ("cat", "dog", "owl")
PALETTE = ((0, 200, 255), (255, 0, 255), (120, 255, 60))
SIZE: tuple[int, int] = (32, 32)


def square(x: int, y: int, side: int = 8) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def targets(images: list[list[tuple[int, Tensor]]], void: Tensor | None = None) -> Targets:
    """Rows of (class, mask) of each image; an ignored one has a class below 0, minus one."""
    most = max(map(len, images))
    columns: dict[str, Any] = {
        **{name: torch.zeros(len(images), most, 4) for name in ("boxes", "frames")},
        "labels": torch.full((len(images), most), -1),
        **{
            name: torch.zeros(len(images), most, dtype=torch.bool)
            for name in ("crowd", "difficult")
        },
        "area": torch.zeros(len(images), most),
        "crops": torch.zeros(len(images), most, 3, dtype=torch.int64),
    }
    bits = []
    for n, rows in enumerate(images):
        found = [cropped(mask) for _, mask in rows]
        frames, crops = [frame for _, frame in found], [crop for crop, _ in found]
        if void is not None:
            crop, frame = cropped(void)
            crops.append(crop)
        packed, places = pack(crops)
        bits.append(packed)
        for row, ((k, mask), frame) in enumerate(zip(rows, frames, strict=True)):
            columns["labels"][n, row] = k if k >= 0 else -1 - k
            columns["difficult"][n, row] = k < 0
            columns["boxes"][n, row] = columns["frames"][n, row] = frame
            columns["area"][n, row] = mask.sum()
            columns["crops"][n, row] = places[row]
        if void is not None:
            columns["void_crop"] = places[None, -1].repeat(len(images), 1)
            columns["void_frame"] = cropped(void)[1][None].repeat(len(images), 1)
    columns["bits"] = nn.utils.rnn.pad_sequence(bits, batch_first=True)
    return Targets(torch.arange(len(images)), **columns)


def predictions(images: list[list[tuple[int, float, Tensor]]]) -> Predictions:
    """Rows of (class, score, mask) of each image."""
    most = max(map(len, images))
    boxes, scores = torch.zeros(len(images), most, 4), torch.zeros(len(images), most)
    labels = torch.full((len(images), most), -1)
    for n, rows in enumerate(images):
        for row, (k, score, mask) in enumerate(rows):
            boxes[n, row], scores[n, row], labels[n, row] = cropped(mask)[1], score, k
    masks = [[encode(mask, 0, 0, SIZE) for *_, mask in rows] for rows in images]
    sizes: list[tuple[int, int]] = [SIZE] * len(images)
    return Predictions(boxes=boxes, scores=scores, labels=labels, masks=masks, sizes=sizes)


class Data:
    """Grey images of one brightness each."""

    classes, palette, channels = CLASSES, PALETTE, 1
    mean, std = (0.5,), (0.25,)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return torch.full((1, *SIZE), 100 + index % 3 * 20, dtype=torch.uint8), {}


def evaluated(truth, found, void=None) -> InstanceEvaluator:
    evaluator = InstanceEvaluator(CLASSES)
    evaluator.update(predictions(found), targets(truth, void))
    return evaluator


def has(picture: Tensor, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly that colour in (H, W, 3)."""
    return int((picture == torch.tensor(colour, dtype=torch.uint8)).all(-1).sum())


def ring(x: int, y: int) -> Tensor:
    """The border of a square, one pixel wide: 28 of its 64 pixels."""
    return square(x, y) & ~square(x + 1, y + 1, 6)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        ([(0, square(4, 4))], [(0, 0.9, square(4, 4))], ([1], [0], [0], [-1])),
        # The boxes are the same and the masks share 28 of 64 pixels.
        ([(0, square(4, 4))], [(0, 0.9, ring(4, 4))], ([0], [1], [1], [-1])),
        ([(0, square(4, 4))], [(1, 0.9, square(4, 4))], ([0], [1], [0], [0])),
        ([(0, square(4, 4))], [(1, 0.9, square(4, 4)), (2, 0.8, square(4, 4))],
         ([0, 0], [1, 1], [0], [0, -1])),
        ([(0, square(4, 4))], [(0, 0.9, square(4, 4)), (1, 0.8, square(4, 4))],
         ([1, 0], [0, 1], [0], [-1, -1])),
        ([(0, square(4, 4))], [(0, 0.4, square(4, 4))], ([], [], [1], [])),
        ([(-1, square(4, 4))], [(0, 0.9, square(4, 4))], ([0], [0], [0], [-1])),
        ([(0, square(4, 4)), (0, square(20, 20))], [(0, 0.9, square(20, 20))],
         ([1], [0], [1, 0], [-1])),
        ([], [(0, 0.9, square(4, 4))], ([0], [1], [], [-1])),
        ([], [], ([], [], [], [])),
    ],
)  # fmt: skip
def test_verdict_by_masks(truth, found, expected):
    (case,) = cases_of(evaluated([truth], [found]))
    said = judged(case, 0.5)
    columns = (said.right, said.false, said.missed, said.instead)
    assert tuple(column.int().tolist() for column in columns) == expected
    assert said.mistakes == int(said.false.sum() + said.missed.sum())


def test_pixels_of_nobody_are_not_judged():
    truth, found = [[(0, square(4, 4))]], [[(0, 0.9, square(2, 2, 12))]]
    (plain,) = cases_of(evaluated(truth, found))
    assert judged(plain, 0.5).false.tolist() == [True]  # 64 of 144 pixels
    around = square(2, 2, 12) & ~square(4, 4)
    (case,) = cases_of(evaluated(truth, found, around))
    assert judged(case, 0.5).right.tolist() == [True]


def test_cases_are_in_order_and_sorted_by_score():
    found = [[(0, 0.6, square(0, 0)), (1, 0.8, square(9, 9))], [], [(2, 0.7, square(3, 3))]]
    truth = [[(0, square(0, 0))], [(1, square(5, 5))], []]
    cases = cases_of(evaluated(truth, found))
    assert [case.image_id for case in cases] == [0, 1, 2]
    assert [case.scores.tolist() for case in cases] == [
        pytest.approx([0.8, 0.6]), [], pytest.approx([0.7])
    ]  # fmt: skip
    assert [case.truth_labels.tolist() for case in cases] == [[0], [1], []]
    assert cases[0].counts[1] == encode(square(0, 0), 0, 0, SIZE)


def test_mistakes_are_the_worst_first_in_the_colour_of_the_verdict():
    a, b, c = square(0, 0), square(16, 0), square(0, 16)
    truth = [[(0, a)], [(0, a), (1, b), (1, c)], [(0, a), (2, b)]]
    found = [
        [(0, 0.9, a)],  # nothing wrong
        [(0, 0.9, a), (2, 0.9, b), (1, 0.9, square(16, 16))],  # confused, false, missed
        [(0, 0.9, a)],  # missed
    ]
    evaluator = evaluated(truth, found)
    picture = draw_mistakes(evaluator, Data())  # pyright: ignore
    assert picture is not None
    for colour in (FOUND, CONFUSED, WRONG, MISSED):
        assert has(picture, colour) > 100
    greys = [round((100 + n * 20) * 0.65 + 128 * 0.35) for n in range(3)]
    left = {n: (picture == grey).all(-1).nonzero() for n, grey in enumerate(greys)}
    assert len(left[0]) < 100, "an image without a mistake is not shown"  # edges of letters
    assert float(left[1][:, 1].median()) < float(left[2][:, 1].median())
    assert draw_mistakes(evaluated(truth[:1], found[:1]), Data()) is None  # pyright: ignore


def test_an_evaluation_is_drawn(monkeypatch):
    monkeypatch.setattr(instance_pictures.detection_charts, "draw_charts", lambda *_: {})
    truth, found = [[(0, square(0, 0))], []], [[(0, 0.9, square(0, 0))], []]
    evaluator = evaluated(truth, found)
    batch = Batch(Images(torch.zeros(2, 1, *SIZE), [SIZE] * 2, [SIZE] * 2), targets(truth))
    drawn = instance_pictures.draw_evaluation(
        [(batch, predictions(found))], evaluator, nn.Conv2d(1, 2, 3), Data()  # pyright: ignore
    )  # fmt: skip
    assert set(drawn) == {"val/predictions", "weights/first_layer", "val/mask_precision_recall"}
    colour = class_colours(3, PALETTE)[0]
    picture = drawn["val/predictions"]
    middle = picture.shape[1] // 4
    assert has(picture[:, :middle], colour) > 50  # the outline of the truth
    assert has(picture[:, middle : 2 * middle], colour) > 50  # and of what was found


def test_a_training_batch_shows_masks_cut_by_their_boxes_and_what_is_nobodys():
    truth = targets([[(0, square(4, 4, 16))], [(1, square(4, 4))]], void=square(24, 24))
    assert truth.boxes is not None
    truth.boxes[0, 0, 2] = 12  # cut off by an augmentation; the frame is not
    images = Images(torch.zeros(2, 1, *SIZE), [SIZE] * 2, [SIZE] * 2)
    picture = instance_pictures.draw_batch(Batch(images, truth), Data())["train/batch"]  # pyright: ignore
    factor = SIDE // 32
    first = picture[13 : 13 + SIDE, 13 : 13 + SIDE]
    coloured = (first[..., 2] > first[..., 0].int() + 20).nonzero()  # the cat's blue
    assert coloured.amax(0).tolist() == [20 * factor - 1, 12 * factor - 1]
    assert has(first, VOID) > 100
    assert has(picture, PALETTE[1]) > 100


def test_a_mirrored_frame_is_drawn_mirrored():
    corner = square(4, 4) & ~(square(4, 4, 4) | square(4, 8, 4))  # its right half
    assert corner.nonzero().amin(0).tolist() == [4, 8]
    truth = targets([[(0, corner | square(4, 4, 1))]])
    assert truth.frames is not None
    truth.frames = truth.frames[:, :, [2, 1, 0, 3]]
    images = Images(torch.zeros(1, 1, *SIZE), [SIZE], [SIZE])
    drawn = instance_pictures.draw_batch(Batch(images, truth), Data())["train/batch"]  # pyright: ignore
    factor = SIDE // 32
    inside = drawn[13 + 7 * factor, 13 : 13 + SIDE]  # a line below the single pixel
    blue = (inside[:, 2] > inside[:, 0].int() + 60).nonzero()[:, 0]
    assert factor * 4 <= int(blue.min()) < int(blue[blue < 9 * factor].max()) < 8 * factor


def test_an_annotated_image_is_coloured_where_the_mask_is():
    mask = square(4, 4) & ~square(6, 6, 4)
    row = {
        "class": "dog",
        "score": 0.9,
        "box": [4.0, 4.0, 12.0, 12.0],
        "segmentation": {"size": [*SIZE], "counts": encode(mask, 0, 0, SIZE).decode()},
    }
    image = torch.full((1, *SIZE), 100, dtype=torch.uint8)
    picture = annotated(image, {"detections": [row], "size": SIZE}, CLASSES, PALETTE)
    factor = 640 // 32
    pink = torch.tensor([(100 + 255) / 2, 50, (100 + 255) / 2]).round().to(torch.uint8)
    assert picture[5 * factor, 8 * factor].tolist() == pink.tolist()
    assert picture[8 * factor, 8 * factor].tolist() == [100] * 3  # its hole
    assert picture[20 * factor, 20 * factor].tolist() == [100] * 3
    small = annotated(image[:, ::2, ::2], {"detections": [row], "size": SIZE}, CLASSES, PALETTE)
    assert small[5 * factor, 8 * factor].tolist() == pink.tolist(), "a smaller copy of the image"


def test_a_sample_is_drawn_small():
    truth = targets([[(0, square(4, 4)), (1, square(20, 20))]])
    columns = {k: v[0] for k, v in vars(truth).items() if isinstance(v, Tensor) and v.ndim > 1}
    data: Any = SimpleNamespace(classes=CLASSES, palette=PALETTE)
    image = torch.full((3, *SIZE), 100, dtype=torch.uint8)
    picture = instance_pictures.draw_sample(image, columns, data, 128).permute(1, 2, 0)
    assert picture.shape == (128, 128, 3)
    assert has(picture, PALETTE[0]) == has(picture, PALETTE[1]) == 4 * 31  # outlines


def test_the_worst_of_many_images_are_found_in_all_of_them():
    """Not only among those that are kept to be drawn."""
    truth = [[(0, square(0, 0))] for _ in range(50)]
    found = [[] if n == 37 else [(0, 0.9, square(0, 0))] for n in range(50)]
    cases = cases_of(evaluated(truth, found))
    wrong = [case.image_id for case in cases if judged(case, 0.5).mistakes]
    assert wrong == [37]
    image = instance_mistakes.with_pixels(cases[37], Data()).image  # pyright: ignore
    assert image.shape == (3, *SIZE)
    assert image.unique().tolist() == [100 + 37 % 3 * 20]
