"""Windows of a pyramid, together or one by one, against each other and tables worked by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnctl.models.base import GradientStage
from cnnctl.models.window_detector import Level, WindowDetector
from cnnctl.ops.boxes import iou
from cnnctl.ops.clock import CONVOLUTION, POST_PROCESSING, REGIONS, Clock
from cnnctl.structures import Batch, Images, Targets


def small(**changed) -> WindowDetector:
    """Windows of 16 pixels, 4 apart, whose objects fill 12."""
    torch.manual_seed(0)
    own = {"window": 16, "context": 2, "sides": (12.0,), "ratios": (1.0,), "widths": (4, 6, 8)}
    own |= {"kernels": (5, 3, 2), "dense": 8, "per_image": 6, "score": 0.0}
    own |= {"high": 0.5, "low": 0.3}
    made = WindowDetector(2, 3, (40, 40), **{**own, **changed})
    with torch.no_grad():
        for layer in made.network:
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                layer.running_mean.uniform_(-0.2, 0.2)
    return made.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(boxes: list, labels: list, size=(40, 40), sizes=None, crowd=None) -> Batch:
    n = len(boxes)
    sizes = sizes or [size] * n
    columns = {"boxes": torch.tensor(boxes, dtype=torch.float32).view(n, -1, 4)}
    columns |= {"labels": torch.tensor(labels, dtype=torch.int64).view(n, -1)}
    if crowd is not None:
        columns["crowd"] = torch.tensor(crowd)
    return Batch(Images(noise(n, 2, *size), sizes, sizes), Targets(torch.arange(n) + 7, **columns))


@pytest.mark.parametrize("size", [(1, 1), (9, 30), (40, 40), (47, 61)])
@pytest.mark.parametrize("context", [0, 2])
def test_all_at_once_are_the_windows_one_by_one(size, context):
    model = small(context=context, sides=(8.0, 13.0), ratios=(0.5, 1.3))
    model.at_once = 50
    images = Images(noise(2, 2, *size), [size] * 2, [size] * 2)
    with torch.no_grad():
        shared, together = model.features(images.pixels), model.predict(images)
        model.shared = False
        single, alone = model.features(images.pixels), model.predict(images)
    assert torch.equal(shared.boxes, single.boxes)
    assert shared.logits.shape == (2, len(shared.boxes), 4)
    torch.testing.assert_close(shared.logits, single.logits, rtol=1e-4, atol=1e-4)
    assert shared.logits.std() > 0.1
    assert together.boxes is not None
    assert alone.boxes is not None
    assert together.boxes.shape[1] > 0
    torch.testing.assert_close(together.boxes, alone.boxes)
    torch.testing.assert_close(together.scores, alone.scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(together.labels, alone.labels)  # pyright: ignore[reportArgumentType]


def test_the_windows_of_a_level():
    """Objects of 20 x 10 pixels (root of the area 14.14, ratio 2) become 12 x 12: an image of 40 x
    40 would be 24 x 48, which is 12 + 4 x 3 and 12 + 4 x 9 as it is."""
    model = small(sides=(200**0.5,), ratios=(2.0,))
    levels = model.levels((40, 40))
    assert levels == [Level(24, 48, rows=4, columns=10)]
    boxes = model.boxes(levels, (40, 40), torch.device("cpu"))
    assert len(boxes) == 40
    up, left = 40 / 24, 40 / 48
    assert boxes[0].tolist() == pytest.approx([0, 0, 10, 20])
    assert boxes[1].tolist() == pytest.approx([4 * left, 0, 16 * left, 20])
    assert boxes[10].tolist() == pytest.approx([0, 4 * up, 10, 16 * up])
    assert boxes[-1].tolist() == pytest.approx([30, 20, 40, 40])


def test_an_image_below_a_window_is_one():
    model = small(sides=(30.0,))
    levels = model.levels((7, 9))
    assert levels == [Level(12, 12, 1, 1)]
    assert model.boxes(levels, (7, 9), torch.device("cpu")).tolist() == [[0, 0, 9, 7]]


def test_how_many_windows_there_are_by_default():
    """What the file says of its cost."""
    with torch.device("meta"):
        scene, photograph = WindowDetector(3, 10, (96, 96)), WindowDetector(3, 20, (600, 600))
    count = [
        sum(level.rows * level.columns for level in model.levels(size))
        for model, size in ((scene, (96, 96)), (photograph, (600, 800)))
    ]
    assert count == [2092, 18715]


def test_a_label_is_that_of_the_box():
    """Windows 4 apart of 12 x 12 against one of them: moved by 4 an IoU of 0.5, by 8 of 0.2; by 4
    both ways 64 / 224 = 0.29."""
    model = small()
    data = batch([[[12, 12, 24, 24]]], [[2]])
    levels = model.levels((40, 40))
    boxes = model.boxes(levels, (40, 40), torch.device("cpu"))
    assert levels == [Level(40, 40, 8, 8)]
    from cnnctl.models.detection import truth_of

    labels, shares = model._labels(truth_of(data.images, data.targets), boxes)
    shown = (labels.view(8, 8) == 2).nonzero().tolist()
    assert shown == [[2, 3], [3, 2], [3, 3], [3, 4], [4, 3]]
    assert (labels == 3).sum() == 64 - 5
    assert shares.sum() == pytest.approx(1)
    assert shares.view(8, 8)[3, 3] == pytest.approx(1 / 5)


def test_windows_are_cut_where_they_lie_and_named_as_they_are():
    """Two images, the first with two objects; what is cut is the level's own pixels."""
    model = small(hard=1)
    data = batch([[[12, 12, 24, 24], [28, 0, 40, 12]], [[0, 20, 12, 32], [0, 0, 0, 0]]],
                 [[2, 0], [1, -1]])  # fmt: skip
    torch.manual_seed(3)
    made = model.windows(data)
    assert len(made) == 12
    labels = made.targets.label
    assert labels is not None
    assert made.targets.image_id.tolist() == [7] * 6 + [8] * 6
    assert set(labels[:3].tolist()) <= {0, 2}
    assert labels[6:9].tolist() == [1, 1, 1]
    assert (labels.view(2, 6)[:, 3:] == 3).all(), "background"
    framed = F.pad(data.images.pixels, (2,) * 4)
    boxes = model.boxes(model.levels((40, 40)), (40, 40), torch.device("cpu"))
    assert data.targets.boxes is not None
    for row, window in enumerate(made.images.pixels):
        views = framed[row // 6].unfold(1, 16, 4).unfold(2, 16, 4)  # (2, 8, 8, 16, 16)
        same = (views == window[:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert len(same) == 1
        place = int(same[0, 0] * 8 + same[0, 1])
        own = [int(label) for label in (data.targets.labels[row // 6])]  # pyright: ignore
        overlaps = iou(data.targets.boxes[row // 6], boxes[place : place + 1])[:, 0]
        if labels[row] < 3:
            assert overlaps[own.index(int(labels[row]))] >= 0.5
        else:
            assert overlaps.max() < 0.3


def test_hard_windows_are_the_least_like_background():
    model = small(hard=6, positives=0.0)
    data = batch([[[12, 12, 24, 24]]] * 2, [[2]] * 2)
    torch.manual_seed(5)
    hard = model.windows(data)
    model.hard = 1
    torch.manual_seed(5)
    plain = model.windows(data)
    with torch.no_grad():
        most, any_one = (
            model.classify(made.images.pixels).softmax(1)[:, 3].view(2, 6).mean(1)
            for made in (hard, plain)
        )
    assert (most < any_one).all()
    assert not model.training


def test_drawing_windows_leaves_every_layer_as_it_was():
    """Frozen layers are in evaluation mode while the others are trained."""
    model = small(hard=2).train()
    model.network[1].eval()
    before = [module.training for module in model.modules()]
    model.windows(batch([[[12, 12, 24, 24]]], [[2]]))
    assert [module.training for module in model.modules()] == before
    assert False in before[1:]


def test_images_without_objects_and_without_background():
    """No box: background alone. A box that all windows are near: nothing is trained on."""
    model = small(sides=(40.0,))  # one window: the image
    for box, label, expected in (
        ([0, 0, 40, 40], 1, [1] * 6),
        ([0, 0, 40, 16], 1, [-1] * 6),
        ([0, 0, 0, 0], -1, [3] * 6),
    ):
        made = model.windows(batch([[box]], [[label]]))
        assert made.targets.label is not None
        assert made.targets.label.tolist() == expected
        loss = model.train().window_loss(made.images, made.targets)["cross_entropy"]
        assert loss.isfinite()
        assert (loss == 0) == (expected[0] == -1)
    none = model.windows(batch([[]], [[]]))
    assert none.targets.label is not None
    assert none.targets.label.tolist() == [3] * 6
    losses, found = model.eval().loss_and_predict(none.images, batch([[]] * 6, [[]] * 6).targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert found.labels is not None


def test_what_fills_a_batch_up_is_no_background():
    model = small()
    made = model.windows(batch([[]], [[]], sizes=[(16, 24)]))
    corner = noise(1, 2, 40, 40)[0]
    framed = F.pad(corner, (2,) * 4)
    views = framed.unfold(1, 16, 4).unfold(2, 16, 4)
    for window in made.images.pixels:
        same = (views == window[:, None, None]).all(-1).all(-1).all(0).nonzero()
        assert same[0, 0] <= 1, "4 + 12 rows of 16"
        assert same[0, 1] <= 3, "12 + 12 columns of 24"


def test_the_loss_of_all_windows_counts_objects_and_background_half_each():
    model = small()
    data = batch([[[12, 12, 24, 24]]], [[2]])
    with torch.no_grad():
        features = model.features(data.images.pixels)
        loss = model.loss(data.images, data.targets)["cross_entropy"]
    minus = -features.logits[0].log_softmax(1).view(8, 8, 4)
    shown = torch.zeros(8, 8, dtype=torch.bool)
    for row, column in ([2, 3], [3, 2], [3, 3], [3, 4], [4, 3]):
        shown[row, column] = True
    expected = (minus[shown][:, 2].mean() + minus[~shown][:, 3].mean()) / 2
    torch.testing.assert_close(loss, expected)


def test_where_the_time_goes():
    images = batch([[]], [[]]).images
    for shared, parts in ((True, {CONVOLUTION}), (False, {CONVOLUTION, REGIONS})):
        with Clock() as clock, torch.no_grad():
            small(shared=shared).predict(images)
        assert set(clock.seconds) == parts | {POST_PROCESSING}


def test_learns_where_a_square_is():
    model = small(per_image=16)
    (stage,) = model.stages()
    assert isinstance(stage, GradientStage)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torch.manual_seed(0)
    model.train()
    for _ in range(40):
        made = stage.view(squares(8))
        optimizer.zero_grad()
        stage.loss(made.images, made.targets)["cross_entropy"].backward()
        optimizer.step()
    test = squares(8)
    with torch.no_grad():
        found = model.eval().predict(test.images)
    assert found.boxes is not None
    assert found.labels is not None
    assert test.targets.labels is not None
    assert torch.equal(found.labels[:, 0], test.targets.labels[:, 0])
    overlaps = iou(found.boxes[:, :1], test.targets.boxes)  # pyright: ignore
    assert overlaps.min() > 0.4, "windows of 12 pixels lie 4 apart"


def squares(count: int) -> Batch:
    """A bright (class 0) or dark square (class 1) of 12 pixels on noise."""
    at = torch.randint(0, 29, (count, 2))
    labels = torch.randint(0, 2, (count, 1))
    pixels = torch.randn(count, 2, 40, 40) * 0.3
    boxes = torch.cat([at, at + 12], 1).float()[:, None]
    for image, ((x, y), label) in enumerate(zip(at.tolist(), labels[:, 0].tolist(), strict=True)):
        pixels[image, :, y : y + 12, x : x + 12] += 2.0 - 4.0 * label
    sizes = [(40, 40)] * count
    targets = Targets(torch.arange(count), boxes=boxes, labels=labels)
    return Batch(Images(pixels, sizes, sizes), targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 8}, "below half of window, got 8 of 16"),
        ({"window": 15}, "a window of 15 leaves a line over"),
        ({"window": 8, "context": 0}, "a window of 8 is too small for the kernels"),
        ({"kernels": (5, 3)}, "widths and kernels must be as long, got 3 and 2"),
        ({"sides": ()}, "sides and ratios must be above 0, got"),
        ({"low": 0.6}, r"low must be at most high, got 0\.6 and 0\.5"),
        ({"hard": 0}, "hard must be at least 1, got 0"),
        ({"positives": 1.5}, r"positives must be from 0 to 1, got 1\.5"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)
