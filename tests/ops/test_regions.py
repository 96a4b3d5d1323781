"""Pooled regions: the same numbers as torchvision's operators, and its gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.ops
from torch import Tensor

from cnnctl.ops.regions import (
    _Align,
    position_sensitive_roi_pool,
    pyramid_levels,
    pyramid_roi_align,
    roi_align,
    roi_pool,
    spatial_pyramid_pool,
)

STRIDES = (4, 8, 16, 32)
# Of an image of 160 x 128 pixels, map 10 x 8 at stride 16.
ODD = [
    [0.0, 0.0, 160.0, 128.0],  # all of it
    [150.0, 120.0, 200.0, 180.0],  # over the corner
    [-60.0, -50.0, 30.0, 20.0],
    [-90.0, -80.0, -40.0, -35.0],  # outside
    [400.0, 20.0, 480.0, 60.0],
    [159.0, 127.0, 160.0, 128.0],  # one pixel
    [40.0, 40.0, 40.0, 40.0],  # empty
    [60.0, 70.0, 30.0, 20.0],  # in the wrong order
    [0.0, 0.0, 1e9, 1e9],
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def boxes() -> Tensor:
    corner = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 150 - 10
    side = random(40, 2, seed=2).exp() * 40
    return torch.cat([torch.tensor(ODD), torch.cat([corner, corner + side], 1)])


@pytest.fixture
def image(boxes) -> Tensor:
    return torch.arange(len(boxes)) % 2


@pytest.fixture
def maps() -> list[Tensor]:
    return [random(2, 5, 128 // stride, 160 // stride, seed=stride) for stride in STRIDES]


def rows(boxes: Tensor, image: Tensor) -> Tensor:
    return torch.cat([image[:, None].float(), boxes], 1)


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], maps: list[Tensor]) -> None:
    """Same values, and the same gradient of every map from an uneven one of the regions."""
    found = [one.clone().requires_grad_() for one in maps]
    expected = [one.clone().requires_grad_() for one in maps]
    regions, truth = ours(*found), theirs(*expected)
    torch.testing.assert_close(regions, truth, rtol=1e-5, atol=1e-5)
    weight = random(*truth.shape, seed=9)
    regions.backward(weight)
    truth.backward(weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_roi_align_is_torchvisions(boxes, image, maps, aligned, sampling, layout):
    agree(
        lambda one: roi_align(one, boxes, image, (7, 5), 1 / 16, sampling, aligned),
        lambda one: torchvision.ops.roi_align(
            one, rows(boxes, image), (7, 5), 1 / 16, sampling, aligned
        ),
        [maps[2].contiguous(memory_format=layout)],
    )


def test_roi_align_by_hand():
    """A plane x + 10 y is interpolated to itself: bins of 2 x 2 pixels, sampled at their middle."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    box, image = torch.tensor([[2.0, 2.0, 10.0, 10.0]]), torch.tensor([0])
    found = roi_align((x + 10 * y)[None, None], box, image, (2, 2), 0.5)
    # From 1 to 5 on the map: middles of the bins at 2 and 4.
    assert found.tolist() == [[[[22.0, 24.0], [42.0, 44.0]]]]


@pytest.mark.parametrize("canonical", [224.0, 56.0])
def test_the_pyramid_is_torchvisions(boxes, image, maps, canonical):
    ordered = image.argsort(stable=True)  # MultiScaleRoIAlign takes boxes image by image
    boxes, image = boxes[ordered], image[ordered]
    names = [str(stride) for stride in STRIDES]
    theirs = torchvision.ops.MultiScaleRoIAlign(
        names, 7, 2, canonical_scale=int(canonical), canonical_level=4
    )
    sides = [(128, 160)] * 2
    assert len(pyramid_levels(boxes, STRIDES, canonical).unique()) >= 2
    agree(
        lambda *maps: pyramid_roi_align(maps, STRIDES, boxes, image, (7, 7), canonical=canonical),
        lambda *maps: theirs(
            dict(zip(names, maps, strict=True)), [boxes[image == 0], boxes[image == 1]], sides
        ),
        maps,
    )


def test_regions_are_in_the_order_of_the_boxes(boxes, image, maps):
    straight = pyramid_roi_align(maps, STRIDES, boxes, image, (3, 3))
    mixed = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
    found = pyramid_roi_align(maps, STRIDES, boxes[mixed], image[mixed], (3, 3))
    torch.testing.assert_close(found, straight[mixed], rtol=0, atol=0)


def test_levels_by_hand():
    """Equation 1: a box of 224 is read at stride 16, half of it one level below."""
    sides = torch.tensor([0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 1e6])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert pyramid_levels(boxes, STRIDES).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert pyramid_levels(boxes, (8, 16, 32)).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2]
    assert pyramid_levels(boxes / 4, STRIDES, 56.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    wrong = torch.tensor([[0, 0, -5.0, 5], [0, 0, torch.nan, 5], [0, 0, torch.inf, 5]])
    assert pyramid_levels(wrong, STRIDES).tolist() == [0, 0, 3]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_both_ways_agree(boxes, image, maps, device):
    """torchvision's operators level by level, as a GPU has them, and the bags."""
    maps = [one.to(device) for one in maps]
    boxes, image = boxes.to(device), image.to(device)
    level = pyramid_levels(boxes, STRIDES, 56.0)
    scales = [1 / stride for stride in STRIDES]

    def ways(*maps: Tensor) -> _Align:
        return _Align(maps, scales, boxes, image, level, (7, 7), 2, False)

    agree(lambda *maps: ways(*maps).by_bags(), lambda *maps: ways(*maps).by_torchvision(), maps)


def pooling(name: str) -> tuple[Callable[..., Tensor], int]:
    """(operator of a map of 16 pixels, channels of that map)."""
    ways: dict[str, tuple[Callable[..., Tensor], int]] = {
        "align": (lambda m, b, i: roi_align(m, b, i, (2, 2), 1 / 16), 3),
        "pyramid": (lambda m, b, i: pyramid_roi_align([m], [16], b, i, (2, 2)), 3),
        "pool": (lambda m, b, i: roi_pool(m, b, i, (2, 2), 1 / 16), 3),
        "position": (lambda m, b, i: position_sensitive_roi_pool(m, b, i, (2, 2), 1 / 16), 12),
        "spatial": (lambda m, b, i: spatial_pyramid_pool(m, b, i, (1, 2), 1 / 16), 3),
    }
    return ways[name]


@pytest.mark.parametrize("name", ["align", "pyramid", "pool", "position", "spatial"])
class TestEveryPooling:
    def test_no_boxes_have_a_zero_gradient(self, name):
        pool, channels = pooling(name)
        features = random(2, channels, 8, 10).requires_grad_()
        found = pool(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        assert found.shape[:2] == ((0, 15) if name == "spatial" else (0, 3))
        found.sum().backward()
        assert features.grad is not None
        assert torch.equal(features.grad, torch.zeros_like(features))

    def test_bfloat16(self, name, boxes, image):
        """Within autocast, from a map that a convolution left: rounding is all that differs."""
        pool, channels = pooling(name)
        features = random(2, channels, 8, 10).contiguous(memory_format=torch.channels_last)
        exact = features.bfloat16().float().requires_grad_()
        rounded = features.bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = pool(rounded, boxes, image)
        assert found.dtype == torch.bfloat16
        expected = pool(exact, boxes, image)
        torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
        weight = random(*expected.shape, seed=3).bfloat16()
        found.backward(weight)
        expected.backward(weight.float())
        assert rounded.grad is not None
        assert exact.grad is not None
        error = (rounded.grad.float() - exact.grad).norm() / exact.grad.norm()
        assert error < 0.01

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_spoils_its_own_row_alone(self, name, value, boxes, image):
        pool, channels = pooling(name)
        features = random(2, channels, 8, 10)
        spoiled = boxes.clone()
        spoiled[3] = value
        found, expected = pool(features, spoiled, image), pool(features, boxes, image)
        others = torch.arange(len(boxes)) != 3
        assert torch.equal(found[others], expected[others])
        assert found.isfinite().all()

    def test_twice_is_the_same_to_the_bit(self, name, boxes, image):
        pool, channels = pooling(name)
        gradients: list[Any] = []
        for _ in range(2):
            features = random(2, channels, 8, 10).requires_grad_()
            pool(features, boxes, image).square().sum().backward()
            gradients.append(features.grad)
        assert torch.equal(*gradients)


def test_roi_pool_is_torchvisions(boxes, image, maps):
    agree(
        lambda one: roi_pool(one, boxes, image, (7, 5), 1 / 16),
        lambda one: torchvision.ops.roi_pool(one, rows(boxes, image), (7, 5), 1 / 16),
        [maps[2]],
    )


def test_roi_pool_by_hand():
    features = torch.arange(24.0).view(1, 1, 4, 6)
    box, image = torch.tensor([[16.0, 0.0, 64.0, 48.0]]), torch.tensor([0])
    # Columns 1 to 4 and rows 0 to 3, both ends in.
    found = roi_pool(features, box, image, (2, 2), 1 / 16)
    assert found.tolist() == [[[[8.0, 10.0], [20.0, 22.0]]]]


def test_position_sensitive_pooling_is_torchvisions(boxes, image):
    """But for the last row and the last column, which torchvision's leaves out."""

    def framed(one: Tensor) -> Tensor:
        return torch.nn.functional.pad(one, (0, 1, 0, 1))

    agree(
        lambda one: position_sensitive_roi_pool(one, boxes, image, (3, 3), 1 / 16),
        lambda one: torchvision.ops.ps_roi_pool(framed(one), rows(boxes, image), 3, 1 / 16),
        [random(2, 18, 8, 10)],
    )


def test_position_sensitive_pooling_reaches_the_border():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    boxes = torch.tensor([[48.0, 48, 64, 64], [32, 0, 64, 64], [0, 0, 64, 64], [96, 0, 128, 64]])
    found = position_sensitive_roi_pool(features, boxes, boxes[:, 0].long() * 0, (1, 1), 1 / 16)
    # The last pixel; the last two columns; all; none, beyond the image.
    assert found.flatten().tolist() == [15, 8.5, 7.5, 0]


def test_position_sensitive_pooling_by_hand():
    """Channel c is c everywhere: bin (i, j) of class d reads channel (d * 2 + i) * 2 + j."""
    features = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 4, 4)
    box, image = torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([0])
    found = position_sensitive_roi_pool(features, box, image, (2, 2), 1 / 16)
    assert found.tolist() == [[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]]


def test_spatial_pyramid_is_a_pooling_for_each_level(boxes, image, maps):
    found = spatial_pyramid_pool(maps[2], boxes, image, (1, 2, 3, 6), 1 / 16)
    assert found.shape == (len(boxes), 5 * 50)
    # The whole image at one bin is the largest value of each channel.
    torch.testing.assert_close(found[0, :5], maps[2][0].amax((1, 2)))
    theirs = torchvision.ops.roi_pool(maps[2], rows(boxes, image), (3, 3), 1 / 16)
    torch.testing.assert_close(found[:, 25:70], theirs.flatten(1))


def test_numbers_out_of_range(maps):
    box, image = torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([0])
    with pytest.raises(ValueError, match="sampling"):
        roi_align(maps[0], box, image, (2, 2), 0.25, sampling=0)
    with pytest.raises(ValueError, match="twice"):
        pyramid_roi_align(maps, (4, 8, 16, 24), box, image, (2, 2))
    with pytest.raises(ValueError, match="strides"):
        pyramid_roi_align(maps, (4, 8, 16), box, image, (2, 2))
    with pytest.raises(ValueError, match="channels"):
        position_sensitive_roi_pool(maps[0], box, image, (2, 2), 0.25)
