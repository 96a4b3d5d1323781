from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cnnctl.backbones.residual_blocks import fuse


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("projects", [False, True])
def test_blocks_are_torchvisions_to_the_bit_in_fp32(block: type, projects: bool) -> None:
    torch.manual_seed(0)
    inputs = 4 * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(inputs, inputs, 1), nn.BatchNorm2d(inputs))
    theirs = nn.Sequential(block(inputs, 4, downsample=shortcut if projects else None))
    ours = copy.deepcopy(theirs)
    fuse(ours)
    assert type(ours[0]) is not type(theirs[0])
    assert type(copy.deepcopy(ours)[0]) is type(ours[0])
    pixels = torch.randn(3, inputs, 6, 6)
    for train in (True, False):
        ours.train(train)
        theirs.train(train)
        out, expected = ours(pixels), theirs(pixels)
        assert torch.equal(out, expected)
        if train:
            out.square().sum().backward()
            expected.square().sum().backward()
    for (name, value), (other, true) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other
        assert value.grad is not None
        assert true.grad is not None
        assert torch.equal(value.grad, true.grad)
    for (name, value), (other, true) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, true)
