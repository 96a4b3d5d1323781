"""FCN: dense layers as convolutions, exact sizes, skips, upsampling, stages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.base import Backbone
from cnnctl.backbones.resnet import ResNet
from cnnctl.backbones.vgg import VGG
from cnnctl.models.base import GradientStage
from cnnctl.models.fcn import FCN, convolutional
from cnnctl.structures import Images, Targets


class Tiny(Backbone):
    """Maps of 3, 4, 5 channels at strides 8, 16, 32, and dense layers on a 7x7 map."""

    def __init__(self, top: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 8, 8)
        self.second, self.third = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 5, 2, 2)
        self.channels = {"c3": 3, "c4": 4, "c5": 5}
        self.strides = {"c3": 8, "c4": 16, "c5": 32}
        self.with_top = top

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        first = self.first(pixels).tanh()
        second = self.second(first).tanh()
        return {"c3": first, "c4": second, "c5": self.third(second).tanh()}

    def build_top(self, dropout: float = 0.5) -> nn.Module | None:
        torch.manual_seed(7)
        if not self.with_top:
            return None
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(5 * 49, 6), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(6, 7), nn.ReLU()),
        )


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def scrambled(model: nn.Module) -> nn.Module:
    """With no weight at zero, so that nothing hides."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


# A dense layer is a convolution.


def test_a_1x1_convolution_is_the_dense_layer_at_every_position():
    torch.manual_seed(0)
    dense = nn.Linear(5, 3)
    conv = convolutional(nn.Sequential(nn.Flatten(), dense), 5, 0.0)
    maps = randn(2, 5, 3, 4)
    with torch.no_grad():
        expected = dense(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(conv(maps), expected)


def test_the_dense_layers_scores_at_every_window():
    """Over a 9x8 map the 7x7 layer fits 3 x 2 times; there it says what the dense layers say."""
    torch.manual_seed(0)
    top = Tiny().build_top()
    assert top is not None
    conv = convolutional(top, 5, 0.5).eval()
    top.eval()
    maps = randn(2, 5, 9, 8)
    with torch.no_grad():
        found = conv(maps)
        assert found.shape == (2, 7, 9, 8)
        for y in range(3):
            for x in range(2):
                window = maps[..., y : y + 7, x : x + 7]
                torch.testing.assert_close(found[..., y + 3, x + 3], top(window))


def test_at_224_the_middle_has_the_classifiers_scores():
    torch.manual_seed(0)
    backbone = Tiny().eval()
    top = backbone.build_top()  # always the same weights
    assert top is not None
    top.eval()
    pixels = randn(1, 2, 224, 224)
    with torch.no_grad():
        deepest = backbone(pixels)["c5"]
        expected = top(deepest)
        model = FCN(backbone, 3, 32).eval()
        dense = model.dense(deepest)
    assert dense.shape == (1, 7, 7, 7)
    torch.testing.assert_close(dense[..., 3, 3], expected)


@pytest.mark.slow
def test_vgg16_says_at_224_what_its_dense_layers_say():
    torch.manual_seed(0)
    backbone = VGG(16).eval()
    pixels = randn(1, 3, 224, 224)
    with torch.no_grad():
        deepest = backbone(pixels)["c5"]
        top = backbone.build_top().eval()
        expected = top(deepest)
        conv = convolutional(top, 512, 0.5).eval()
        torch.testing.assert_close(conv(deepest)[..., 3, 3], expected, rtol=1e-4, atol=1e-4)


def test_parameters_of_the_paper():
    """Table 1: 134 M for FCN-VGG16 (of stride 32, with the upsampling that is not learned)."""
    with torch.device("meta"):
        model = FCN(VGG(16), 21, 32)
    count = sum(p.numel() for p in model.parameters())
    assert count == 14_714_688 + (512 * 49 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 21
    assert round(count / 1e6) == 134


# Sizes, skips, upsampling.


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_output_size_is_input_size(stride):
    torch.manual_seed(0)
    model = FCN(Tiny(), 3, stride).eval()
    with torch.inference_mode():
        for side in range(1, 71):
            for shape in ((side, side), (side, 71 - side)):
                assert model(torch.zeros(1, 2, *shape)).shape == (1, 3, *shape)


def test_the_sum_of_the_skips():
    """By torch's own interpolation: what figure 3 draws."""
    torch.manual_seed(0)
    model = FCN(Tiny(top=False), 3, 8, upsampling="fixed").eval()
    scrambled(model)
    pixels = randn(2, 2, 64, 96)
    with torch.no_grad():
        maps = model.backbone(pixels)
        pool5, pool4, pool3 = (
            score(maps[name]) for name, score in zip(("c5", "c4", "c3"), model.scores, strict=True)
        )
        for skip in (pool4, pool3):
            pool5 = F.interpolate(pool5, scale_factor=2, mode="bilinear") + skip
        expected = F.interpolate(pool5, scale_factor=8, mode="bilinear")
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [32, 8])
def test_learned_upsampling_starts_as_the_fixed(stride):
    torch.manual_seed(0)
    models = {
        kind: FCN(Tiny(), 3, stride, upsampling=kind).eval()
        for kind in ("fixed", "last_fixed", "learned")
    }
    own = models["fixed"].state_dict()
    learned = {k: [n for n, _ in m.named_parameters() if "up" in n] for k, m in models.items()}
    steps = [f"ups.{i}.transposed.conv.weight" for i in range(2 if stride == 8 else 0)]
    assert learned == {"fixed": [], "last_fixed": steps, "learned": steps}
    last = "last.transposed.conv.weight"
    assert {k for k, m in models.items() if last in m.state_dict()} == {"learned"}
    pixels = randn(1, 2, 40, 65)
    with torch.no_grad():
        for score in models["fixed"].scores:
            nn.init.normal_(score.weight)  # pyright: ignore[reportArgumentType]
        expected = models["fixed"](pixels)
        for model in models.values():
            model.load_state_dict(own, strict=False)
            torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)


def test_finer_networks_start_as_the_coarser():
    """The skips' scores are zero: FCN-8s starts with FCN-32s's classes of each map's position."""
    torch.manual_seed(0)
    model = FCN(Tiny(), 3, 8).eval()
    assert not any(score.weight.any() or score.bias.any() for score in model.scores[1:])  # pyright: ignore
    assert model.scores[0].weight.std().item() == pytest.approx(1e-3, rel=0.3)  # pyright: ignore
    pixels = randn(1, 2, 32, 32)
    with torch.no_grad():
        deepest = model.scores[0](model.dense(model.backbone(pixels)["c5"]))
        torch.testing.assert_close(model(pixels), deepest.expand(-1, -1, 32, 32))


def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    model = scrambled(FCN(Tiny(), 3))
    pixels = randn(3, 2, 40, 33)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels)[1:2], model(pixels[1:2]), rtol=1e-4, atol=1e-5)


# Training.


def batch(size: tuple[int, int] = (40, 33)) -> tuple[Images, Targets]:
    mask = torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(1))
    images = Images(randn(2, 2, *size), [size] * 2, [size] * 2)
    return images, Targets(torch.arange(2), mask=mask.byte())


def test_trained_in_stages():
    """32s without the skips, then each skip joins; what joins later gets no step before."""
    torch.manual_seed(0)
    model = FCN(Tiny(), 3, 8, upsampling="learned", staged=True)
    stages = model.stages()
    assert [stage.name for stage in stages] == ["fcn32s", "fcn16s", "fcn8s"]
    named = {id(p): n for n, p in model.named_parameters()}
    sets = []
    for stage in stages:
        assert isinstance(stage, GradientStage)
        sets.append({named[id(p)] for p in stage.params()})
        model.zero_grad()
        torch.stack(list(stage.loss(*batch()).values())).sum().backward()
        for parameter in stage.params():
            assert parameter.grad is not None, named[id(parameter)]
            assert parameter.grad.abs().sum() > 0, named[id(parameter)]
    first = {"scores.1.weight", "scores.1.bias", "ups.0.transposed.conv.weight"}
    second = {"scores.2.weight", "scores.2.bias", "ups.1.transposed.conv.weight"}
    assert sets[2] == set(named.values())
    assert sets[2] - sets[1] == second
    assert sets[1] - sets[0] == first
    assert [s.name for s in FCN(Tiny(), 3, 16, staged=True).stages()] == ["fcn32s", "fcn16s"]
    assert [s.name for s in FCN(Tiny(), 3, 16).stages()] == ["train"]


def test_resnet_has_the_maps():
    torch.manual_seed(0)
    model = FCN(ResNet(18), 4, 8).eval()
    assert model.names == ["c5", "c4", "c3"]
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 33, 47)).shape == (1, 4, 33, 47)


@pytest.mark.slow
def test_overfits_eight_images():
    torch.manual_seed(0)
    model = FCN(Tiny(), 2, 8, dropout=0.0)
    mask = (F.interpolate(randn(8, 1, 5, 5), (40, 40), mode="nearest") > 0).byte()[:, 0]
    pixels = mask[:, None].float().expand(-1, 2, -1, -1) - 0.5
    images, targets = (
        Images(pixels, [(40, 40)] * 8, [(40, 40)] * 8),
        Targets(torch.arange(8), mask=mask),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(images, targets)["cross_entropy"].backward()
        optimizer.step()
    predicted = model.eval().predict(images).mask
    assert predicted is not None
    assert (predicted == mask).float().mean() > 0.93


def test_refuses():
    with pytest.raises(ValueError, match="stride must be 32, 16 or 8, got 4"):
        FCN(Tiny(), 3, 4)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match='"last_fixed" or "fixed", got "bilinear"'):
        FCN(Tiny(), 3, upsampling="bilinear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        FCN(Tiny(), 3, dropout=1.0)
    with pytest.raises(ValueError, match="FCN-16s needs a map at stride 32; ResNet has strides 1,"):
        FCN(ResNet(18, small_input=True), 3, 16)
    with pytest.raises(ValueError, match="dense layer of 20 inputs is no convolution of odd side"):
        convolutional(nn.Sequential(nn.Linear(20, 3)), 5, 0.0)
    with pytest.raises(ValueError, match="Tanh has no form as a convolution"):
        convolutional(nn.Sequential(nn.Tanh()), 5, 0.0)
