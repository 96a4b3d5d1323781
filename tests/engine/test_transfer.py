"""What is trained, how fast, and what stays; and features that are computed once."""

from __future__ import annotations

import comparing
import pytest
import torch
from torch import nn

from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.engine.trainer import parameter_groups
from cnnctl.engine.transfer import Features, Full, Last, Linear, depth_order
from cnnctl.models.base import GradientStage
from cnnctl.models.cifar_resnet import CifarResNet
from cnnctl.models.lenet import LeNet
from cnnctl.structures import Batch, Images, Targets


def lenet() -> LeNet:
    torch.manual_seed(0)
    return LeNet(1, 10, (32, 32))


def resnet() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(1, 5, (8, 8), 8)


def silent(text: str) -> None:
    pass


def only(stages) -> GradientStage:
    assert len(stages) == 1
    assert isinstance(stages[0], GradientStage)
    return stages[0]


def trained(model: nn.Module, stage: GradientStage) -> list[str]:
    wanted = {id(parameter) for parameter in stage.params()}
    return [name for name, p in model.named_parameters() if id(p) in wanted]


def test_stages_from_the_shallowest():
    assert depth_order(resnet()) == [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"]]
    assert depth_order(lenet()) == [
        *(["features.0"], ["features.3"], ["classifier.1"], ["classifier.3"]),
    ]


@pytest.mark.parametrize(
    ("overrides", "count", "last"),
    [
        (("model=vgg16", "augmentation.size=224"), 15, ["classifier.3"]),  # 13 + 3, less the last
        (("model=googlenet", "augmentation.size=224"), None, ["features.inception_5b"]),
        (("model=mobilenet_v2", "augmentation.size=64"), 19, ["features.18.0", "features.18.1"]),
        (("model=resnet18", "augmentation.size=64"), 5, ["backbone.layer4"]),
        (("model=mlp", "model.widths=[8,4]"), 2, ["features.2"]),
        (("model=convnext", "augmentation.size=64"), 8, None),  # a norm beside the last layer
        (("model=mobilenet_v3", "augmentation.size=64"), 18, ["classifier.0"]),
    ],
)
def test_stages_of_models(overrides, count, last):
    from cnnctl import build, compose

    config = compose.settings(compose.compose("train", list(overrides)))
    data = build.facts(config)
    with torch.device("meta"):
        model = build.model(config, data, build.augmentation(config, data).size)
    found = depth_order(model)
    assert count in (None, len(found))
    assert last in (None, found[-1])


def test_last_trains_the_deepest_and_the_head():
    model, said = resnet(), []
    stage = only(Last(stages=1).stages(model, None, said.append))
    assert {name.split(".")[0] for name in trained(model, stage)} == {"layer3", "linear"}
    assert said == ["trained: layer3, linear", "frozen: conv1, bn1, layer1, layer2"]
    with pytest.raises(ValueError, match="stages is 5, and this network has 4"):
        Last(stages=5).stages(model, None, silent)
    assert len(trained(model, only(Last(stages=4).stages(model, None, silent)))) == len(
        list(model.parameters())
    )


def test_rates_of_the_groups():
    model = resnet()
    stage = only(Full(backbone_rate=0.25).stages(model, None, silent))
    groups = parameter_groups(list(stage.params()), False, stage)
    found = [
        (g.get("share", 1), g.get("weight_decay"), sum(p.numel() for p in g["params"]))
        for g in groups
    ]
    norms = 2 * (16 * 3 + 32 * 2 + 64 * 2)
    rest = sum(p.numel() for p in model.parameters()) - norms - 64 * 5 - 5
    assert found == [(1, None, 64 * 5), (1, 0.0, 5), (0.25, None, rest), (0.25, 0.0, norms)]
    # without rates of their own the groups are as they ever were
    assert [list(g) for g in parameter_groups(list(model.parameters()), False)] == [
        ["params"],
        ["params", "weight_decay"],
    ]


def batch(count: int) -> Batch:
    pixels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    size = [(8, 8)] * count
    return Batch(Images(pixels, size, size), Targets(torch.arange(count), torch.arange(count) % 5))


def test_features_computed_once_give_the_same_loss():
    model, said = resnet(), []
    assert model.bn1.running_mean is not None
    model.bn1.running_mean += 0.3
    stage = only(Linear().stages(model, 6, said.append))
    assert stage.first is not None
    model.eval()
    whole = batch(6)
    with torch.no_grad():
        stage.first(iter([whole.rows(slice(4)), whole.rows(slice(4, 6))]))
    assert said == ["features of 6 images computed once, 0.0 MB"]
    some = whole.rows(slice(1, 5))
    expected = model.loss(some.images, some.targets)["cross_entropy"]
    nothing = Images(torch.full_like(some.images.pixels, torch.nan), [], [])
    found = stage.loss(nothing, some.targets)["cross_entropy"]  # pixels are not looked at
    torch.testing.assert_close(found, expected)
    found.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == trained(
        model, stage
    )


def test_when_features_are_not_kept():
    said: list[str] = []
    assert only(Linear().stages(resnet(), None, said.append)).first is None
    assert only(Linear(cache=False).stages(resnet(), 6, said.append)).first is None
    assert "augmentation=none" in said[0]
    assert "transfer.cache=false" in said[1]

    class Scaled(CifarResNet):
        def forward(self, pixels):
            return 2 * super().forward(pixels)

    model = Scaled(1, 5, (8, 8), 8).eval()
    kept = Features(model, model.linear, 6, said.append)
    with torch.no_grad():
        kept.fill(iter([batch(6)]))
    assert "more follows the last layer" in said[2]
    few = batch(2)
    assert torch.equal(
        kept.loss(few.images, few.targets)["cross_entropy"],
        model.loss(few.images, few.targets)["cross_entropy"],
    )


def test_models_that_cannot():
    from staged import Staged

    with pytest.raises(ValueError, match="gradients in a single stage"):
        Full().stages(Staged(1, 10, (8, 8)), None, silent)
    with pytest.raises(ValueError, match="backbone_rate must be positive"):
        Full(backbone_rate=0)


RESNET = (
    *("model=cifar_resnet", "model.depth=8", "trainer.batch_size=16", "trainer.steps=8"),
    *("trainer.evaluate_every_steps=4", "trainer.save_every=3", "data.per_class=20"),
    "trainer.log_every=2",
)


@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    directory = tmp_path_factory.mktemp("transfer") / "source"
    assert train(directory, *RESNET, "data.only=[0,1,2,3]") == 0
    return directory


KINDS = {
    "linear": ("transfer=linear", "augmentation=none"),
    "linear_augmented": ("transfer=linear", "augmentation=standard"),
    "last": ("transfer=last", "transfer.stages=1", "optimizer=adamw"),
    "full": ("transfer=full", "transfer.frozen_norm=true"),
}
FROZEN = {
    "linear": ("conv1", "bn1", "layer1", "layer2", "layer3"),
    "linear_augmented": ("conv1", "bn1", "layer1", "layer2", "layer3"),
    "last": ("conv1", "bn1", "layer1", "layer2"),
    "full": ("running_mean", "running_var"),
}


@pytest.mark.parametrize(
    "kind",
    ["linear", "last", *(pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[1::2])],
)
def test_frozen_tensors_stay_and_a_resumed_run_has_the_same_bits(
    kind, source, train, command, tmp_path, monkeypatch
):
    settings = (*RESNET, "data.only=[5,6,7]", *KINDS[kind], f"weights={source}")
    assert train(tmp_path / "whole", *settings) == 0
    given = checkpoint.read(source / "best.pt")["model"]
    after = checkpoint.read(tmp_path / "whole" / "last.pt")["model"]
    for name in (name for name in given if not name.startswith("linear")):
        frozen = name.startswith(FROZEN[kind]) or name.endswith(FROZEN[kind])
        if frozen:
            assert torch.equal(after[name], given[name]), name
        elif name.endswith("weight"):
            assert not torch.equal(after[name], given[name]), name

    count, original = iter(range(9)), Loop._after_step

    def stop(self, *arguments):
        if next(count) == 5:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_after_step", stop)
        assert train(tmp_path / "again", *settings) == 130
    assert command("train", f"resume={tmp_path / 'again'}") == 0
    assert comparing.runs_differ(tmp_path / "whole", tmp_path / "again") == []
