"""Pictures by their pixels: what is drawn where, and that nothing else is touched."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnctl.data.loaders import Normalize
from cnnctl.drawing import pictures

BAR = torch.tensor([74, 127, 181], dtype=torch.uint8)


def pixels_of(picture: Tensor, colour) -> Tensor:
    """(H, W) bool: where the picture has exactly that colour."""
    return (picture == torch.as_tensor(colour, dtype=torch.uint8)).all(2)


class Facts:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std


@pytest.mark.parametrize(
    ("mean", "std"), [((0.3041,), (0.3751,)), ((0.49, 0.48, 0.44), (0.24, 0.25, 0.26))]
)
def test_displayable_undoes_the_normalisation(mean, std):
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, len(mean), 1, 1)
    normalised = Normalize(mean, std, torch.device("cpu"))(every)
    before = normalised.clone()
    shown = pictures.displayable(normalised, mean, std)
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, every.expand(2, 3, 16, 16))
    assert torch.equal(normalised, before)


def test_displayable_stays_in_range():
    shown = pictures.displayable(torch.tensor([-50.0, 50.0]).view(2, 1, 1, 1), (0.5,), (0.5,))
    assert shown[:, 0, 0, 0].tolist() == [0, 255]


def test_gallery_keeps_the_pixels_of_small_images():
    image = torch.randint(256, (3, 5, 3), generator=torch.Generator().manual_seed(0)).byte()
    picture = pictures.gallery([image] * 3, columns=2, side=32)
    large = image.repeat_interleave(6, 1).repeat_interleave(6, 2).permute(1, 2, 0)  # 30 x 18
    found = [
        (top, left)
        for top in range(picture.shape[0] - 29)
        for left in range(picture.shape[1] - 17)
        if torch.equal(picture[top : top + 30, left : left + 18], large)
    ]
    assert len(found) == 3
    (top, left), (top_2, left_2), (top_3, left_3) = found
    assert top == top_2
    assert left == left_3
    assert left_2 - left == top_3 - top - 3 == 32 + 2 * 5 + 8  # no captions; 3 above their place


def test_gallery_shrinks_large_images():
    picture = pictures.gallery([torch.full((3, 300, 600), 90, dtype=torch.uint8)], side=128)
    rows, columns = pixels_of(picture, (90, 90, 90)).nonzero().unbind(1)
    assert columns.max() - columns.min() + 1 == 128
    assert rows.max() - rows.min() + 1 == 64


def test_gallery_marks_with_a_border_all_round():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    colours = [pictures.RIGHT, pictures.WRONG, None]
    picture = pictures.gallery([image] * 3, [[], [], []], colours, side=16)
    for colour, count in ((pictures.RIGHT, 1), (pictures.WRONG, 1)):
        assert pixels_of(picture, colour).sum() == count * (26 * 26 - 16 * 16)
    black = pixels_of(picture, (0, 0, 0))
    assert black.sum() == 3 * 16 * 16


def test_long_captions_stay_within_their_cell():
    image = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    picture = pictures.gallery([image] * 2, [["W" * 90, "b\nb"], []], side=64)
    ink = (picture < 128).any(2).nonzero()[:, 1]
    assert len(ink)
    assert ink.max() < 8 + 64 + 2 * 5 + 4  # the second cell, which has no caption, is clean


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("owl: 7%", "owl: 7%"),
        ("a\nb  c", "a b c"),
        ("an automobile: 47%", "an auto… 47%"),
        ("an automobile", "an automobi…"),
        ("7" * 90, "7" * 11 + "…"),
        ("x " + "7" * 90, "x " + "7" * 9 + "…"),
    ],
)
def test_cut_keeps_a_number_at_the_end(text, shown):
    class Font:
        def getlength(self, text: str) -> int:
            return len(text)

    assert pictures._cut(text, Font(), 12) == shown


def test_gallery_of_nothing_in_a_script_without_a_font_glyph():
    picture = pictures.gallery([torch.zeros(3, 4, 4).byte()], [["猫 $\\frac$ кошка"]])
    assert picture.dtype == torch.uint8


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        (torch.tensor(2), ["c"]),
        (torch.tensor([0.7, 0.3, 0.0, 0.0]), ["a 0.70", "b 0.30"]),  # mixup
        (torch.tensor([0.0, 0.0, 1.0, 0.0]), ["c 1.00"]),  # mixup that drew 1
        (torch.tensor([0.02, 0.02, 0.02, 0.94]), ["d 0.94"]),  # label smoothing
        (torch.tensor([0.02, 0.28, 0.02, 0.68]), ["d 0.68", "b 0.28"]),  # both
    ],
)
def test_labels(label, lines):
    assert pictures.label_lines(label, "abcd") == lines


def test_labels_of_two_classes():
    assert pictures.label_lines(torch.tensor([0.25, 0.75]), ["no", "yes"]) == [
        "yes 0.75",
        "no 0.25",
    ]


def test_confusion_colours_by_the_share_of_the_truth():
    counts = torch.diag(torch.tensor([3, 50, 900, 7]))
    picture = pictures.confusion(counts, ["a", "b", "c", "d"])
    dark = pixels_of(picture, (8, 48, 107))  # matplotlib's Blues at 1
    square = 300 * 300  # pixels of the whole matrix
    assert dark.sum() == pytest.approx(square / 4, rel=0.05)  # less the digits in white
    swapped = pictures.confusion(counts[[1, 0, 2, 3]], ["a", "b", "c", "d"])
    assert not torch.equal(swapped, picture)
    rows, columns = dark.nonzero().unbind(1)
    order = torch.corrcoef(torch.stack([rows.double(), columns.double()]))[0, 1]
    assert order > 0.8  # the diagonal goes down to the right


@pytest.mark.parametrize("k", [1, 2, 10, 26, 100, 300])
def test_confusion_of_any_number_of_classes(k):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = pictures.confusion(
            torch.zeros(k, k, dtype=torch.int64), [f"猫{i}" for i in range(k)]
        )
    assert picture.shape[2] == 3
    assert max(picture.shape) <= 1800


def test_class_names_are_not_mathematics():
    picture = pictures.confusion(torch.eye(2).long(), ["$\\nothing$", "a_b^$"])
    assert picture.dtype == torch.uint8
    pictures.class_accuracies({"$\\nothing$": 0.5})


def test_class_accuracies_are_the_lengths_of_bars_the_best_on_top():
    picture = pictures.class_accuracies({"half": 0.5, "all": 1.0, "none": 0.0, "tenth": 0.1})
    lengths = pixels_of(picture, BAR).sum(1)  # of each row of pixels
    runs = [int(length) for length in lengths if length > 20]
    assert all(after < before + 10 for before, after in pairwise(runs))
    assert max(runs) == pytest.approx(600, abs=15)  # less the dashed line of the mean
    assert sum(abs(run - 300) < 11 for run in runs) == pytest.approx(22, abs=3)
    assert sum(abs(run - 60) < 11 for run in runs) == pytest.approx(22, abs=3)


def test_many_classes_are_the_best_and_the_worst():
    many = pictures.class_accuracies({f"c{i}": i / 499 for i in range(500)})
    few = pictures.class_accuracies({f"c{i}": i / 39 for i in range(40)})
    assert many.shape[0] == few.shape[0] + 28  # one row more, which says how many are left out


def test_first_layer_of_a_convolution():
    first = nn.Conv2d(1, 2, 3, bias=False)
    model = nn.Sequential(first, nn.Conv2d(2, 9, 3))
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 0, 0, 0] = 0.02
        first.weight[1, 0, 1, 1] = -5
    picture = pictures.first_layer(model, (1, 8, 8), ["a", "b"])
    assert picture is not None
    tap = (128 // 3) ** 2  # pixels of one weight
    grey = int(pixels_of(picture, (128, 128, 128)).sum())
    assert grey == 2 * 8 * tap
    assert pixels_of(picture, (0, 0, 0)).sum() == tap  # each by its own largest weight


def test_first_layer_of_a_linear_model_is_a_template_of_each_class():
    linear = nn.Linear(3 * 4 * 4, 2)
    model = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight.view(2, 3, 4, 4)[0, 0, 3, 1] = 1.0  # red, at the bottom
    picture = pictures.first_layer(model, (3, 4, 4), ["a", "b"])
    assert picture is not None
    red = pixels_of(picture, (255, 128, 128)).nonzero()
    assert len(red) == 32 * 32
    top, left = (red.min(0).values - 13).tolist()  # 13: gap and border
    assert (top, left) == (3 * 32, 1 * 32)


@pytest.mark.parametrize(
    "model",
    [nn.Identity(), nn.Linear(7, 2), nn.Conv2d(16, 4, 3), nn.Sequential(nn.Linear(12, 4))],
    ids=["no weights", "features", "not of pixels", "two channels"],
)
def test_first_layer_that_is_no_picture(model):
    shape = (2, 2, 3) if isinstance(model, nn.Sequential) else (1, 4, 4)
    assert pictures.first_layer(model, shape, ["a", "b"]) is None


def test_annotated_has_the_image_and_bars_in_proportion():
    image = torch.full((1, 8, 8), 200, dtype=torch.uint8)
    picture = pictures.annotated(image, "seven", [("seven", 0.8), ("a long name " * 9, 0.2)])
    assert pixels_of(picture, (200, 200, 200)).sum() >= 256 * 256
    bars = pixels_of(picture, BAR).sum(1)
    longest, shortest = int(bars.max()), int(bars[bars > 0].min())
    assert longest / shortest == pytest.approx(4, rel=0.1)


def test_annotated_large_image_is_brought_to_a_screen():
    picture = pictures.annotated(torch.zeros(3, 1000, 3000).byte(), "x", [("x", 1.0)])
    assert picture.shape[1] == 640 + 16
    assert pixels_of(picture, (0, 0, 0)).sum() >= 640 * 213


@pytest.mark.parametrize(
    ("probability", "text"), [(0.5, "50%"), (0.003, "0.3%"), (0.9951, "99.5%"), (1.0, "100.0%")]
)
def test_percent(probability, text):
    assert pictures.percent(probability) == text


def test_no_random_number_is_drawn():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002  # pyright: ignore
    pictures.gallery([torch.zeros(3, 8, 8).byte()], [["x"]])
    pictures.confusion(torch.eye(3).long(), ["a", "b", "c"])
    pictures.class_accuracies({"a": 1.0, "b": math.nan})
    pictures.first_layer(nn.Identity(), (1, 1, 1), [])
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002  # pyright: ignore
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]


def test_a_run_without_tensorboard_imports_nothing_to_draw_with(tmp_path):
    script = f"""
import sys
from cnnctl import cli
try:
    cli.main(["train", "hydra.run.dir={tmp_path}/run", "trainer.steps=2", "trainer.threads=1",
              "trainer.tensorboard=false"])
except SystemExit as ended:
    assert ended.code == 0, ended.code
print([name for name in ("PIL", "matplotlib", "tensorboard") if name in sys.modules])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"
