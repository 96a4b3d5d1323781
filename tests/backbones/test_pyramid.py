"""Pyramids against torchvision's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.pyramid import Pyramid, freeze_norm
from cnnctl.backbones.resnet import ResNet

EXTRAS = {
    "pool": (LastLevelMaxPool, ("c2", "c3", "c4", "c5")),
    "p6p7_of_c5": (lambda: LastLevelP6P7(512, 256), ("c3", "c4", "c5")),
    "p6p7_of_p5": (lambda: LastLevelP6P7(256, 256), ("c3", "c4", "c5")),
}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def settle(module: nn.Module) -> None:
    """Statistics, scales and shifts as a trained network has them, so that they can be told."""
    generator = torch.Generator().manual_seed(2)
    for name, value in module.state_dict().items():
        if name.endswith(("running_mean", "running_var")) or ".bn" in name:
            value.copy_(torch.rand(value.shape, generator=generator).to(value.dtype) + 0.5)


class Small(Backbone):
    """A convolution with batch normalisation for each map."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {"c2": 4, "c3": 8}
        self.strides = {"c2": 4, "c3": 8}
        self.norm = nn.BatchNorm2d(3)
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        fine = self.first(self.norm(pixels))
        return {"c2": fine, "c3": self.second(fine)}


@pytest.mark.parametrize("extra", EXTRAS)
def test_is_torchvisions_under_its_names(extra):
    block, maps = EXTRAS[extra]
    torch.manual_seed(0)
    theirs = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[int(name[1:]) - 1 for name in maps],
        extra_blocks=block(),
    ).eval()
    settle(theirs)
    ours = Pyramid(ResNet(18), maps, extra=extra).eval()
    ours.load_state_dict(theirs.state_dict())  # strictly
    pixels = noise(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = ours(pixels), theirs(pixels)
    assert list(ours.strides) == list(found)
    for (name, level), wanted in zip(found.items(), expected.values(), strict=True):
        torch.testing.assert_close(level, wanted)
        stride = ours.strides[name]
        assert level.shape[2:] == (-(-64 // stride), -(-96 // stride))


def test_strides_follow_the_backbone():
    with torch.device("meta"):
        fine = Pyramid(ResNet(18, small_input=True), ("c2", "c4"))
        coarse = Pyramid(ResNet(18), ("c4", "c5"), 32, "p6p7_of_p5")
    assert fine.strides == {"p2": 1, "p3": 4, "p4": 8}
    assert coarse.strides == {"p4": 16, "p5": 32, "p6": 64, "p7": 128}


def test_frozen_norm_is_torchvisions_in_numbers():
    """Trained on or not, it says what batch normalisation says in eval mode, and stays."""
    torch.manual_seed(0)
    body = ResNet(18)
    settle(body)
    pixels = noise(2, 3, 64, 64)
    with torch.no_grad():
        expected = body.eval()(pixels)
    before = body.state_dict()
    frozen = freeze_norm(body).train()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    norms = [layer for layer in frozen.modules() if isinstance(layer, FrozenBatchNorm2d)]
    assert [layer.eps for layer in norms] == [1e-5] * 20
    after = frozen.state_dict()
    assert after.keys() == {key for key in before if not key.endswith("num_batches_tracked")}
    torch.testing.assert_close(frozen(pixels), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen.state_dict(), {key: before[key] for key in after})
    assert not [name for name, _ in frozen.named_parameters() if "bn" in name]


def test_frozen_norm_of_a_pyramid_is_its_bodys():
    for frozen, kind in ((True, FrozenBatchNorm2d), (False, nn.BatchNorm2d)):
        pyramid = Pyramid(Small(), ("c2", "c3"), 8, frozen_norm=frozen)
        assert type(pyramid.body.norm) is kind


def test_refuses():
    with pytest.raises(ValueError, match=r"no map c1, only c2, c3"):
        Pyramid(Small(), ("c1", "c2"))
    with pytest.raises(ValueError, match="without scales cannot be frozen"):
        freeze_norm(nn.Sequential(nn.BatchNorm2d(3, affine=False)))
