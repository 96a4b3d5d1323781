"""Ways up: the lecture's tables as worked, matrices, and torch's own operations."""

from __future__ import annotations

import warnings
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.ops.upsampling import (
    Kind,
    MaxUnpool,
    SubPixel,
    Transposed,
    bed_of_nails,
    bilinear,
    bilinear_filter,
    icnr_,
    max_unpool,
    nearest,
    upsampler,
)

KINDS = get_args(Kind)


def plane(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# The lecture's tables.


def test_nearest_neighbour_as_worked():
    expected = plane([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    assert torch.equal(nearest(plane([[1, 2], [3, 4]]), 2), expected)
    assert torch.equal(upsampler("nearest", 1, 1, 2)(plane([[1, 2], [3, 4]])), expected)


def test_bed_of_nails_as_worked():
    expected = plane([[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])
    assert torch.equal(bed_of_nails(plane([[1, 2], [3, 4]]), 2), expected)
    assert torch.equal(upsampler("bed_of_nails", 1, 1, 2)(plane([[1, 2], [3, 4]])), expected)


def test_max_unpooling_as_worked():
    """Pooling remembers where each maximum was; later values go back there."""
    before = plane([[1, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    pooled, positions = F.max_pool2d(before, 2, return_indices=True)
    assert torch.equal(pooled, plane([[5, 6], [7, 8]]))
    expected = plane([[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]])
    assert torch.equal(max_unpool(plane([[1, 2], [3, 4]]), positions, (4, 4)), expected)
    assert torch.equal(MaxUnpool(2)(plane([[1, 2], [3, 4]]), positions), expected)


def test_transposed_convolution_as_worked():
    """[a, b] with the filter [x, y, z] and stride 2: [ax, ay, az + bx, by, bz]."""
    a, b, x, y, z = 2.0, 3.0, 5.0, 7.0, 11.0
    line = F.conv_transpose1d(torch.tensor([[[a, b]]]), torch.tensor([[[x, y, z]]]), stride=2)
    assert line.tolist() == [[[a * x, a * y, a * z + b * x, b * y, b * z]]]
    # In two dimensions, 3x3 and stride 2; the module keeps scale times the size: one pixel of
    # padding takes the first row and column off, output_padding brings a last one.
    with pytest.warns(UserWarning, match="kernel 3 and stride 2 makes a checkerboard"):
        up = Transposed(1, 1, 2, kernel=3)
    column = torch.tensor([1.0, 10.0, 100.0])
    with torch.no_grad():
        up.conv.weight.copy_((column[:, None] * torch.tensor([x, y, z]))[None, None])
        up.conv.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        found = up(plane([[a, b]]))
    worked = torch.tensor([a * y, a * z + b * x, b * y, b * z])
    assert torch.equal(found, plane([(10 * worked).tolist(), (100 * worked).tolist()]))


# Matrices and other oracles.


def matrix(weight: Tensor, stride: int, padding: int, h: int, w: int) -> Tensor:
    """The convolution with ``weight`` (D, C, k, k) as a matrix, tap by tap."""
    made, given, k, _ = weight.shape
    tall, wide = ((side + 2 * padding - k) // stride + 1 for side in (h, w))
    rows = torch.zeros(made, tall, wide, given, h, w)
    for i in range(tall):
        for j in range(wide):
            for u in range(k):
                for v in range(k):
                    y, x = i * stride + u - padding, j * stride + v - padding
                    if 0 <= y < h and 0 <= x < w:
                        rows[:, i, j, :, y, x] = weight[:, :, u, v]
    return rows.reshape(made * tall * wide, given * h * w)


@pytest.mark.parametrize(("kernel", "scale"), [(2, 2), (3, 2), (4, 2), (3, 3), (5, 3)])
def test_transposed_convolution_is_the_transpose_of_the_matrix(kernel, scale):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        up = Transposed(3, 2, scale, kernel=kernel)
    h, w = 3, 4
    big = (scale * h, scale * w)
    with torch.no_grad():
        up.conv.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        dense = matrix(up.conv.weight, scale, up.conv.padding[0], *big)  # pyright: ignore
        image = randn(1, 2, *big)
        down = F.conv2d(image, up.conv.weight, stride=scale, padding=up.conv.padding)
        torch.testing.assert_close(dense @ image.flatten(), down.flatten())
        assert down.shape == (1, 3, h, w)
        maps = randn(1, 3, h, w)
        torch.testing.assert_close(up(maps).flatten(), dense.T @ maps.flatten())


@pytest.mark.parametrize("scale", [2, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3)])
def test_bilinear_and_nearest_are_torchs_interpolation(scale, size):
    maps = randn(2, 3, *size).requires_grad_()
    for ours, mode, extra in ((bilinear, "bilinear", False), (nearest, "nearest", None)):
        theirs = F.interpolate(maps, scale_factor=scale, mode=mode, align_corners=extra)
        torch.testing.assert_close(ours(maps, scale), theirs, rtol=1e-5, atol=1e-6)
        weight = randn(*theirs.shape)
        (expected,) = torch.autograd.grad((theirs * weight).sum(), maps)
        (found,) = torch.autograd.grad((ours(maps, scale) * weight).sum(), maps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_bilinear_start_interpolates_inside(scale):
    """Only the border differs, where the transposed convolution sees zeros outside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of 5 and 3, or 3 and 2, no warning either: it is smooth
        up = Transposed(3, 3, scale, bilinear=True)
    maps = randn(2, 3, 4, 5)
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    with torch.no_grad():
        torch.testing.assert_close(up(maps)[inner], bilinear(maps, scale)[inner])
    assert up.conv.bias is None


def test_the_bilinear_filter_of_scale_two():
    """(1, 3, 3, 1) / 4 in both directions; of 3: (1, 2, 3, 2, 1) / 3."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    torch.testing.assert_close(bilinear_filter(2), line[:, None] * line)
    line = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 3
    torch.testing.assert_close(bilinear_filter(3), line[:, None] * line)


def test_max_unpooling_is_torchs_and_its_gradient_goes_back():
    before = randn(2, 3, 6, 8)
    pooled, positions = F.max_pool2d(before, 2, return_indices=True)
    maps = randn(*pooled.shape).requires_grad_()
    out = max_unpool(maps, positions, (6, 8))
    torch.testing.assert_close(out, nn.MaxUnpool2d(2)(maps, positions), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.square().sum(), maps)
    torch.testing.assert_close(grad, 2 * maps)


def test_max_unpooling_to_an_odd_size():
    """What the pooling left out of its windows is zero."""
    before = randn(1, 2, 5, 7)
    pooled, positions = F.max_pool2d(before, 2, return_indices=True)
    out = max_unpool(pooled, positions, (5, 7))
    assert out.shape == before.shape
    assert torch.equal(out[out != 0], before[out != 0])
    assert int((out != 0).sum()) == pooled.numel()
    assert not out[..., 4, :].any()
    assert not out[..., 6].any()


def test_sub_pixel_puts_channels_side_by_side():
    """Channel 4 c + 2 i + j of the convolution is pixel (i, j) of output channel c."""
    up = SubPixel(1, 2, 2)
    with torch.no_grad():
        up.conv.weight.zero_()
        assert up.conv.bias is not None
        up.conv.bias.copy_(torch.arange(8))
        found = up(torch.zeros(1, 1, 1, 2))
    assert found[0, 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]
    assert found[0, 1].tolist() == [[4, 5, 4, 5], [6, 7, 6, 7]]


def test_icnr_starts_as_nearest_neighbour():
    torch.manual_seed(0)
    up = SubPixel(3, 2, 3)
    with torch.no_grad():
        found = up(randn(1, 3, 4, 4))
    assert torch.equal(found, nearest(found[..., ::3, ::3], 3))
    plain = SubPixel(3, 2, 3, icnr=False)
    assert not torch.equal(icnr_(plain.conv.weight.detach().clone(), 3), plain.conv.weight)


# One interface.


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("channels", [(4, 4), (4, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_has_its_size_and_gradients(kind, channels, scale):
    torch.manual_seed(0)
    up = upsampler(kind, channels[0], channels[1], scale)
    maps = randn(2, channels[0], 3, 5).requires_grad_()
    out = up(maps)
    assert out.shape == (2, channels[1], 3 * scale, 5 * scale)
    out.square().mean().backward()
    for tensor in (maps, *up.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_no_convolution_where_the_channels_stay():
    counts = {kind: sum(p.numel() for p in upsampler(kind, 4, 4, 2).parameters()) for kind in KINDS}
    assert counts == {
        **dict.fromkeys(("nearest", "bed_of_nails", "bilinear"), 0),
        "transposed": 4 * 4 * 2 * 2 + 4,
        "sub_pixel": 16 * 4 * 9 + 16,
    }
    assert isinstance(upsampler("bilinear", 4, 2, 2).get_submodule("channels"), nn.Conv2d)


def test_a_kernel_that_the_scale_divides_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Transposed(1, 1, 2, kernel=4)
        upsampler("transposed", 1, 1, 3)


def test_refuses():
    with pytest.raises(ValueError, match=r'upsampling must be one of nearest, .*, got "cubic"'):
        upsampler("cubic", 1, 1, 2)  # pyright: ignore[reportArgumentType]
    for kind in KINDS:
        with pytest.raises(ValueError, match="scale must be at least 2, got 1"):
            upsampler(kind, 1, 1, 1)
    with pytest.raises(ValueError, match=r"kernel must be at least scale \(3\), got 2"):
        Transposed(1, 1, 3, kernel=2)
    with pytest.raises(ValueError, match="a bilinear start needs a kernel of 4 and as many chann"):
        Transposed(1, 2, 2, bilinear=True)
