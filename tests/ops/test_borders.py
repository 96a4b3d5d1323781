"""Beyond its border an image goes on as its mirror image, as far as one wants."""

import torch
import torch.nn.functional as F

from cnnctl.ops.borders import mirror_pad, mirrored


def test_positions_by_hand():
    assert mirrored(torch.arange(-5, 8), 3).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(torch.arange(-2, 3), 1).tolist() == [0] * 5
    sides = torch.tensor([[2], [4]])
    assert mirrored(torch.tensor([[-1, 2], [-1, 4]]), sides).tolist() == [[1, 0], [1, 2]]


def test_a_small_frame_is_torchs_own():
    pixels = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = F.pad(pixels, (4, 1, 2, 3), mode="reflect")
    assert torch.equal(mirror_pad(pixels, (2, 4), (3, 1)), expected)


def test_a_frame_wider_than_the_image():
    """Mirrored twice: the middle of the large frame is the small frame."""
    pixels = torch.rand(1, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    large, small = mirror_pad(pixels, (9, 9), (9, 9)), mirror_pad(pixels, (2, 2), (2, 2))
    assert large.shape == (1, 1, 22, 21)
    assert torch.equal(large[..., 7:15, 7:14], small)
    assert torch.equal(large[..., 3:7, :], large[..., 9:13, :])  # a period of 6 lines on
    assert (mirror_pad(pixels[..., :1, :1], (3, 2), (1, 0)) == pixels[0, 0, 0, 0]).all()
