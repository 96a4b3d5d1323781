"""The detector of gradients against scikit-image and scikit-learn, and tables worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.feature import hog
from sklearn.svm import LinearSVC

from cnnctl.engine.given_weights import Given, take
from cnnctl.errors import UserError
from cnnctl.models.base import FitStage
from cnnctl.models.detection import Truth
from cnnctl.models.hog_detector import HogDetector
from cnnctl.models.hog_examples import Examples, Kept, signs
from cnnctl.ops.linear_svm import NEVER
from cnnctl.structures import Batch, Images, Targets

MEAN, STD = (0.5,) * 3, (0.25,) * 3
SIDE = 64


def model(classes: int = 2, **change) -> HogDetector:
    torch.manual_seed(0)
    made = HogDetector(classes, MEAN, STD, **{"cells": 6, "rounds": 1, "step": 1.3, **change})
    return made.eval()


def normalised(raw: torch.Tensor) -> torch.Tensor:
    return (raw / 255 - 0.5) / 0.25


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255


def scenes(count: int, seed: int, labels: tuple[int, ...] = (0, 1)) -> Batch:
    """A bright ring (class 0) and a bright cross (class 1) of 16 to 24 pixels on faint noise."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(count, 1, SIDE, SIDE, generator=generator) * 30
    boxes = torch.zeros(count, 2, 4)
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    for image in range(count):
        for half, label in enumerate((0, 1)):
            side = int(torch.randint(16, 25, (), generator=generator))
            top = int(torch.randint(0, SIDE - side, (), generator=generator))
            left = int(torch.randint(0, 32 - side + 1, (), generator=generator)) + 32 * half
            away = [(axis[:side, :side] - (side - 1) / 2).abs() for axis in (x, y)]
            far = torch.hypot(*away)
            ring = (far < side / 2) & (far > side / 2 - 4)
            cross = torch.minimum(*away) < 2
            shape = (ring, cross)[label]
            raw[image, 0, top : top + side, left : left + side] += 180 * shape
            boxes[image, half] = torch.tensor([left, top, left + side, top + side])
    said = torch.tensor([0, 1]).expand(count, -1)
    said = torch.where(torch.isin(said, torch.tensor(labels)), said, -1)
    sizes = [(SIDE, SIDE)] * count
    pixels = normalised(raw.clamp(max=255)).expand(-1, 3, -1, -1)
    return Batch(
        Images(pixels, sizes, sizes), Targets(torch.arange(count), boxes=boxes, labels=said)
    )


def fitted(batch: Batch, **change) -> HogDetector:
    made = model(**change)
    (stage,) = made.stages()
    assert isinstance(stage, FitStage)
    half = len(batch) // 2
    with torch.no_grad():
        stage.fit(iter([batch.rows(slice(0, half)), batch.rows(slice(half, None))]))
    return made


def test_the_scan_is_the_template_on_each_window_cut_out():
    """... and a window is scikit-image's descriptor, of cells that see their neighbours."""
    made = model(3)
    torch.nn.init.normal_(made.template.weight)
    torch.nn.init.normal_(made.template.bias)  # pyright: ignore[reportArgumentType]
    image = noise(1, 1, 40, 48).round()
    with torch.no_grad():
        found = made.margins(made.level(image, 1.0))[0]  # (3, rows, columns)
    beyond = made.beyond * made.cell
    framed = F.pad(image, (beyond + 1,) * 4, mode="replicate")[0, 0].numpy()
    assert found.shape == (3, 40 // 4 + 2 * 2 - 6 + 1, 48 // 4 + 2 * 2 - 6 + 1)
    for row, column in ((0, 0), (3, 5), (found.shape[1] - 1, found.shape[2] - 1)):
        top, left = row * 4, column * 4
        window = framed[top : top + 26, left : left + 26]  # a pixel more on each side
        cells = hog_of_inside(window)
        weight = made.template.weight.detach().numpy()
        bias = made.template.bias.detach().numpy()  # pyright: ignore[reportOptionalMemberAccess]
        expected = np.einsum("yxd,kdyx->k", cells, weight) + bias
        np.testing.assert_allclose(found[:, row, column].numpy(), expected, rtol=1e-3, atol=1e-3)


def hog_of_inside(window: np.ndarray) -> np.ndarray:
    """(26, 26) -> (5, 5, 36) by scikit-image: of cells of 4 pixels within a border of 4, which is
    a pixel of the image and what does not count."""
    wide = np.pad(window, 3, mode="edge")  # 32 x 32: the outermost cells are left out
    blocks = hog(wide, 9, (4, 4), (2, 2), feature_vector=False)
    return blocks[1:-1, 1:-1].reshape(5, 5, 36)


def test_the_planes_are_scikit_learns_on_the_same_rows():
    batch = scenes(12, 0)
    made = model(rounds=0)
    kept = Kept(1 << 30)
    truth = Truth(*(getattr(batch.targets, name) for name in ("boxes", "labels")))
    kept.add(made.raw(batch.images.pixels), batch.images.sizes, truth)
    made._measure(kept)
    examples = Examples(made, kept, 1 << 30)
    with torch.no_grad():
        weight, bias = examples.planes(hard=False)
    rows, said = examples.rows[: examples.count], examples.signs[: examples.count]
    assert examples.objects == 24
    assert examples.count > 60
    for label in range(2):
        counted = said[:, label] != 0
        svm = LinearSVC(C=made.C, tol=1e-8, max_iter=10**5, random_state=0)
        svm.fit(rows[counted].numpy(), said[counted, label].numpy())
        np.testing.assert_allclose(weight[label], svm.coef_[0], atol=2e-3 * np.abs(svm.coef_).max())
        np.testing.assert_allclose(bias[label], np.atleast_1d(svm.intercept_)[0], atol=5e-3)


def test_finds_shapes_that_it_was_fitted_to():
    made, test = fitted(scenes(16, 0), step=1.1), scenes(4, 1)
    with torch.no_grad():
        found = made.predict(test.images)
    assert found.boxes is not None
    assert found.labels is not None
    assert test.targets.boxes is not None
    for row in range(4):
        for label in (0, 1):
            best = int((found.labels[row] == label).nonzero()[0])
            truth = test.targets.boxes[row, label]
            assert overlap(found.boxes[row, best], truth) > 0.5, (row, label)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    from torchvision.ops import box_iou

    return float(box_iou(a[None], b[None]))


def test_a_class_without_objects_is_never_found():
    made, test = fitted(scenes(8, 0, labels=(1,)), score=0.0), scenes(2, 1)
    with torch.no_grad():
        margins, found = made.features(test.images.pixels), made.predict(test.images)
    assert (margins.values[..., 0] == NEVER).all()
    assert found.labels is not None
    assert (found.labels == 1).any()
    assert not (found.labels == 0).any()


@pytest.mark.parametrize("labels", [(), (0, 1)])
def test_without_objects_or_before_the_fit_nothing_is_found(labels):
    batch = scenes(4, 0, labels=())
    made = fitted(batch) if not labels else model()
    with torch.no_grad():
        losses, found = made.loss_and_predict(batch.images, batch.targets)
    assert found.labels is not None
    assert found.labels.shape == (4, 0)
    assert all(loss.isfinite() for loss in losses.values())
    assert made.templates() is None


def test_a_fit_that_starts_anew_gives_the_same():
    batch = scenes(8, 0)
    one, again = fitted(batch), fitted(batch)
    first = {name: value.clone() for name, value in one.state_dict().items()}
    with torch.no_grad():
        one.fit(iter(batch.split(2)))  # what it was before leaves no trace
    for name, value in first.items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, one.state_dict()[name]), name


def test_shapes_and_sizes_are_the_objects():
    """Class 0 is 20 x 40 pixels, class 1 is 40 x 10: with an inside of 4 cells of 4 pixels their
    boxes are 8 x 16 and 16 x 4."""
    made, kept = model(), Kept(1 << 30)
    boxes = torch.tensor([[[0.0, 0, 20, 40], [5, 5, 45, 15]]])
    kept.add(noise(1, 3, SIDE, SIDE), [(SIDE, SIDE)], Truth(boxes, torch.tensor([[0, 1]])))
    made._measure(kept)
    assert made.sides().tolist() == [[8, 16], [16, 4]]
    # Both are 2.5 times as large: a pyramid of one level, at 0.4.
    torch.testing.assert_close(made.range, torch.tensor([40.0, 40.0]))
    assert made.scales((SIDE, SIDE)) == pytest.approx([0.4])
    # 64 x 0.4 / 4 = 6.4: 6 cells, and 2 beyond on each side: windows of 6 begin at 5 of them.
    assert made._windows((SIDE, SIDE), 0.4) == (5, 5)
    found = made.boxes((SIDE, SIDE), 0.4)
    assert found.shape == (25, 2, 4)
    # The centre of the third window of the third row: (3 cells - 2 beyond + 2) x 4 = 12 of 24.
    torch.testing.assert_close(found[12, 0], torch.tensor([8.0, 4.0, 16.0, 20.0]) * SIDE / 24)
    # Windows of just these objects: 15 pixels on each side of the middle, at 2.5 pixels a pixel.
    windows = Examples(made, kept, 1 << 20).windows(boxes[0], torch.tensor([0, 1]))
    torch.testing.assert_close(windows[0], torch.tensor([-20.0, -10, 40, 50]))
    torch.testing.assert_close(windows[1], torch.tensor([-5.0, -20, 55, 40]))


def test_signs_by_overlap():
    """Of 10 x 10 boxes, moved by 3 (IoU 0.54), 5 (0.33) and 8 pixels (0.11)."""
    row = torch.tensor([[x, 0.0, x + 10, 10] for x in (0, 3, 5, 8)])
    boxes = row[:, None].expand(4, 2, 4)
    truth = Truth(torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]]), torch.tensor([[1, -1]]))
    said = signs(boxes[None], truth)
    assert said.tolist() == [[[-1, 1], [-1, 1], [-1, 0], [-1, -1]]]
    none = Truth(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64))
    assert (signs(boxes[None], none) == -1).all()


def test_rows_stay_within_memory():
    batch = scenes(8, 0)
    width = model().template.weight[0].numel()
    made = model(negatives=20)
    kept = Kept(1 << 30)
    truth = Truth(*(getattr(batch.targets, name) for name in ("boxes", "labels")))
    kept.add(made.raw(batch.images.pixels), batch.images.sizes, truth)
    made._measure(kept)
    examples = Examples(made, kept, 4 * width * 40)
    assert len(examples.rows) == 40
    assert examples.objects == 16
    with torch.no_grad():
        examples.planes(hard=False)
        examples.planes(hard=True)
    assert examples.objects < examples.count <= 40
    assert (examples.signs[:16] > 0).sum() == 16, "objects stay"
    few = Kept(3 * SIDE * SIDE * 2)
    few.add(made.raw(batch.images.pixels), batch.images.sizes, truth)
    assert len(few.images) == 2


def photograph() -> Batch:
    size = [(600, 800)]  # 1.4 MB
    columns = {"boxes": torch.tensor([[[10.0, 10, 100, 100]]]), "labels": torch.tensor([[0]])}
    return Batch(
        Images(torch.zeros(1, 3, *size[0]), size, size), Targets(torch.arange(1), **columns)
    )


@pytest.mark.parametrize("batches", [[], [photograph()]], ids=["no image", "a large image"])
def test_memory_for_no_image_is_refused(batches):
    with pytest.raises(UserError, match="holds no training image") as refused:
        model(memory=1).fit(iter(batches))
    assert refused.value.field == "model.memory"


def test_images_beyond_memory_are_not_read():
    """Scenes of 12,288 bytes, of which a megabyte holds 85."""
    made, batches = model(memory=1, rounds=0), iter([scenes(20, seed) for seed in range(7)])
    made.training_images = 140
    said = "the first 85 of 140 training images"
    with torch.no_grad(), pytest.warns(UserWarning, match=said):
        made.fit(batches)
    assert len(list(batches)) == 2
    assert made.template.weight.any()


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 70)])
def test_images_smaller_than_a_window(size):
    made = fitted(scenes(8, 0))
    images = Images(normalised(noise(2, 3, *size)), [size] * 2, [size] * 2)
    with torch.no_grad():
        found = made.predict(images)
    assert found.boxes is not None
    assert found.boxes.shape[0] == 2
    assert found.boxes.isfinite().all()


def test_one_grey_is_nothing():
    made = fitted(scenes(16, 0))
    images = Images(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)], [(SIDE, SIDE)])
    with torch.no_grad():
        margins = made.features(images.pixels).values
    bias = made.template.bias
    assert bias is not None
    torch.testing.assert_close(margins, bias.expand_as(margins))
    assert (margins < 0).all()


def test_given_templates_are_those_of_the_classes_by_their_names():
    given, made = model(2), model(3)
    given.ratio.copy_(torch.tensor([0.5, 2.0]))
    file = Given(Path("x.pt"), given.state_dict(), ("cat", "dog"), own=True)
    taken = take(made, file, ("dog", "cow", "cat"), "weights")
    assert made.ratio.tolist() == [2, 1, 0.5]
    assert "ratio" in taken.rebuilt


def test_what_blocks_say_of_a_cell():
    """A block's four cells: upper left, upper right, lower left, lower right; nine each."""
    made = model(1, cells=3, margin=0)
    with torch.no_grad():
        made.template.weight.zero_()
        made.template.weight[0, 3, 0, 0] = 1.0  # upper left of the first block: cell (0, 0)
        made.template.weight[0, 9 + 4, 1, 0] = 2.0  # upper right of block (1, 0): cell (1, 1)
        made.template.weight[0, 27 + 4, 0, 0] = 3.0  # lower right of the first: cell (1, 1)
    found = made.templates()
    assert found is not None
    assert found.turn == 0.5
    cells = found.weights[0]
    assert cells.shape == (9, 3, 3)
    assert cells.nonzero().tolist() == [[3, 0, 0], [4, 1, 1]]
    assert cells[4, 1, 1] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": 3, "margin": 1}, "cells must be at least 4 for a margin of 1, got 3"),
        ({"C": 0.0}, "C must be positive and step above 1, got 0 and 1.3"),
        ({"step": 1.0}, r"C must be positive and step above 1, got 0\.01 and 1"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"overlap": 1.5}, r"overlap must be from 0 to 1, got 1\.5"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        model(**change)
