from __future__ import annotations

import torch

from cnnctl.data.loaders import Normalize
from cnnctl.ops.raw_pixels import RawPixels


def test_every_byte_comes_back_from_what_the_loader_made_of_it():
    mean, std = (0.4914, 0.13), (0.247, 0.3081)
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 2, 16, 16)
    raw = RawPixels(mean, std)(Normalize(mean, std, torch.device("cpu"))(pixels))
    torch.testing.assert_close(raw, pixels.float(), rtol=0, atol=1e-3)
    assert not RawPixels(mean, std).state_dict()
