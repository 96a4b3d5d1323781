"""The layer table: published costs, hand-made receptive fields, and gradients as the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnctl.backbones.resnet import ResNet
from cnnctl.engine.layers import Layers, Row, layer_table
from cnnctl.models.base import ClassificationModel
from cnnctl.models.cifar_resnet import CifarResNet
from cnnctl.models.classifier import Classifier
from cnnctl.models.lenet import LeNet
from cnnctl.models.linear import Linear
from cnnctl.models.mlp import MLP


class Net(ClassificationModel):
    """A network under test as a classifier: the mean of its last map."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.probe = nn.ReLU()  # the last row that has a field

    def forward(self, pixels: Tensor) -> Tensor:
        return self.probe(self.body(pixels)).mean((2, 3))


def rows(layers: Layers) -> dict[str, Row]:
    return {row.name: row for row in layers.rows}


def field_of(body: nn.Module, size: int = 64) -> tuple[int, int] | None:
    return rows(layer_table(Net(body), 1, (size, size)))["probe"].field


def field_by_gradient(body: nn.Module, size: int = 96) -> tuple[int, int]:
    """The largest extent of non-zero gradients over outputs far from the border."""
    body = body.double()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.uniform_(0.5, 1.0)  # no two paths can cancel
    pixels = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    out = body(pixels).sum(1)[0]
    middle = [range(n * 3 // 8, n * 5 // 8 + 1) for n in out.shape]
    extents = []
    for y in middle[0]:
        (gradient,) = torch.autograd.grad(out[y, middle[1][0]], pixels, retain_graph=True)
        extents.append([int(dim.max() - dim.min()) + 1 for dim in gradient[0, 0].nonzero().T])
    for x in middle[1]:
        (gradient,) = torch.autograd.grad(out[middle[0][0], x], pixels, retain_graph=True)
        extents.append([int(dim.max() - dim.min()) + 1 for dim in gradient[0, 0].nonzero().T])
    height, width = (max(side) for side in zip(*extents, strict=True))
    return height, width


# name, output, kernel, stride, parameters, multiply-adds, field: the paper's section II.B
LENET = [
    ("features.0", (6, 28, 28), (5, 5), (1, 1), 156, 28 * 28 * 6 * 25, (5, 5)),
    ("features.2", (6, 14, 14), (2, 2), (2, 2), 0, 0, (6, 6)),
    ("features.3", (16, 10, 10), (5, 5), (1, 1), 2416, 10 * 10 * 16 * 150, (14, 14)),
    ("features.5", (16, 5, 5), (2, 2), (2, 2), 0, 0, (16, 16)),
    ("classifier.1", (120,), None, None, 48120, 400 * 120, None),
    ("classifier.3", (84,), None, None, 10164, 120 * 84, None),
    ("classifier.5", (10,), None, None, 850, 84 * 10, None),
]


def test_lenet_by_hand():
    layers = layer_table(LeNet(1, 10, (32, 32)), 1, (32, 32))
    table = rows(layers)
    for name, shape, kernel, stride, parameters, multiply_adds, field in LENET:
        row = table[name]
        assert (row.shape, row.kernel, row.stride) == (shape, kernel, stride), name
        assert (row.parameters, row.flops, row.field) == (parameters, 2 * multiply_adds, field)
    assert list(table) == [f"features.{i}" for i in range(6)] + [
        f"classifier.{i}" for i in range(6)
    ]
    assert layers.parameters == 61706
    assert layers.flops == 2 * sum(row[5] for row in LENET)
    # each convolution, pooling and dense output, and the log-probabilities; ReLUs are in place
    values = 6 * 28**2 + 6 * 14**2 + 16 * 10**2 + 16 * 5**2 + 120 + 84 + 10 + 10
    assert layers.activation_bytes == 4 * values


@pytest.mark.parametrize(
    ("depth", "giga_multiply_adds", "parameters", "field"),
    # torchvision's own figures (``_ops`` and ``num_params``); fields: Araujo et al. 2019
    [
        (18, 1.814, 11689512, (435, 435)),
        (34, 3.664, 21797672, (899, 899)),
        (50, 4.089, 25557032, (427, 427)),  # 483 with the paper's stride in the first 1x1
    ],
)
def test_imagenet_resnets_cost_what_is_published(depth, giga_multiply_adds, parameters, field):
    layers = layer_table(Classifier(ResNet(depth), 1000, (224, 224)), 3, (224, 224))
    assert layers.flops / 2e9 == pytest.approx(giga_multiply_adds, abs=0.0005)
    assert layers.parameters == parameters
    table = rows(layers)
    last = [row for row in layers.rows if row.kind == "Conv2d"][-1]
    assert last.field == field
    assert table["linear"].field is None
    assert table["backbone.conv1"].field == (7, 7)
    assert table["backbone.maxpool"].field == (11, 11)


@pytest.mark.parametrize(
    ("depth", "shortcut", "multiply_adds", "field"),
    [(20, "A", 40_551_040, 81), (20, "B", 40_813_184, 81), (56, "A", 125_485_696, 249)],
)
def test_cifar_resnets(depth, shortcut, multiply_adds, field):
    layers = layer_table(CifarResNet(3, 10, (32, 32), depth, shortcut), 3, (32, 32))
    assert layers.flops == 2 * multiply_adds
    assert [row for row in layers.rows if row.kind == "BatchNorm2d"][-1].field == (field, field)


def test_multiply_adds_of_resnet20_by_hand():
    group = 6 * 32 * 32 * 16 * 16 * 9  # maps shrink by 4 and weights grow by 4
    smaller_first = group // 6 // 2
    total = 32 * 32 * 3 * 16 * 9 + 3 * group - 2 * smaller_first + 64 * 10
    assert total == 40_551_040


@pytest.mark.parametrize(
    "model",
    [
        Linear(3, 10, (8, 8)),
        MLP(3, 10, (8, 8), [20, 30], batch_norm=True, dropout=0.5),
        LeNet(3, 10, (32, 32)),
        CifarResNet(3, 10, (32, 32), 20, "B"),
        Classifier(ResNet(18, small_input=True), 10, (32, 32)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_rows_add_up_to_the_totals(model):
    size = (8, 8) if isinstance(model, (Linear, MLP)) else (32, 32)
    layers = layer_table(model, 3, size)
    assert sum(row.parameters for row in layers.rows) == layers.parameters
    assert sum(row.flops for row in layers.rows) == layers.flops > 0
    assert layers.rows[-1].shape == (10,)
    assert layers.activation_bytes > 0


def test_the_model_is_left_as_it_was():
    model = CifarResNet(3, 10, (32, 32), 8)
    model.layer2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    layer_table(model, 3, (32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_used_twice_has_its_parameters_once():
    conv = nn.Conv2d(1, 1, 3)
    layers = layer_table(Net(nn.Sequential(conv, nn.Tanh(), conv)), 1, (16, 16))
    convs = [row for row in layers.rows if row.kind == "Conv2d"]
    assert [row.parameters for row in convs] == [10, 0]
    assert [row.field for row in convs] == [(3, 3), (5, 5)]
    assert layers.parameters == 10


def test_windows_given_as_words_and_pairs():
    body = nn.Sequential(
        nn.Conv2d(1, 1, (3, 5), padding="same", dilation=2), nn.Conv2d(1, 1, 2, padding="valid")
    )
    table = rows(layer_table(Net(body), 1, (16, 16)))
    assert (table["body.0"].kernel, table["body.0"].padding) == ((3, 5), (2, 4))
    assert table["body.1"].padding == (0, 0)
    assert table["body.1"].field == (6, 10)


class Branches(nn.Module):
    """An Inception-like block: 1x1, 3x3, 5x5 and pooled paths side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            [nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([*(path(x) for path in self.paths), pooled], 1)


class Shifted(nn.Module):
    """Two paths that look to different sides: the field is their hull, not the larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.pad(x, (6, -4, 0, 2)), F.pad(x, (0, 2, 0, 2))
        return self.conv(left) + self.conv(right)


class TinyUNet(nn.Module):
    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 1, 3, 2, 1), up
        self.deep, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.up(self.deep(self.down(x))), x], 1))


class Subsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = (x[:, :, ::3, ::3] + self.conv(x)).permute(0, 2, 3, 1)
        return F.linear(channels_last, channels_last.new_ones(2, 1)).permute(0, 3, 1, 2)


BODIES = {
    "three 3x3": lambda: nn.Sequential(*(nn.Conv2d(1, 1, 3) for _ in range(3))),
    "strides": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 7, 2, 3), nn.AvgPool2d(3, 2), nn.Conv2d(2, 1, 3)
    ),
    "not square": lambda: nn.Sequential(nn.Conv2d(1, 1, (3, 5), (2, 1)), nn.Conv2d(1, 1, (1, 3))),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(1, 1, 3, dilation=4), nn.Conv2d(1, 1, 3, dilation=2)
    ),
    "branches": lambda: nn.Sequential(Branches(), nn.Conv2d(4, 1, 2, 2), nn.Conv2d(1, 1, 3)),
    "shifted": Shifted,
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1), nn.Conv2d(1, 1, 2)
    ),
    "transposed, odd": lambda: nn.Sequential(
        nn.Conv2d(1, 1, 3, 4, 1), nn.ConvTranspose2d(1, 1, 5, 3, 1), nn.Conv2d(1, 1, 3, 2)
    ),
    "u-net, nearest": lambda: TinyUNet(nn.Upsample(scale_factor=2)),
    "u-net, bilinear": lambda: TinyUNet(nn.Upsample(scale_factor=2, mode="bilinear")),
    "u-net, transposed": lambda: TinyUNet(nn.ConvTranspose2d(1, 1, 2, 2)),
    "adaptive": lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d(24)),
    "lrn": lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.LocalResponseNorm(3), nn.Conv2d(3, 1, 3)),
}


@pytest.mark.parametrize("name", BODIES)
def test_fields_equal_those_of_gradients(name):
    torch.manual_seed(0)
    assert field_of(BODIES[name](), 96) == field_by_gradient(BODIES[name](), 96)


def test_field_of_hand_made_networks():
    assert field_of(BODIES["three 3x3"]()) == (7, 7)
    assert field_of(BODIES["not square"]()) == (3, 7)
    assert field_of(nn.Sequential(Subsampled(), nn.Conv2d(2, 1, 2))) is None  # flattened by linear
    assert field_of(nn.Sequential(nn.Conv2d(1, 1, 3), nn.GroupNorm(1, 1), nn.Dropout())) == (3, 3)


class Gate(nn.Module):
    """Squeeze and excite: every position sees the pooled image."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.adaptive_avg_pool2d(x, 1).sigmoid()


class Pasted(nn.Module):
    """Written into a part of a larger tensor: what it sees is not followed, so it is all."""

    def forward(self, x: Tensor) -> Tensor:
        canvas = torch.zeros_like(x)
        canvas[:, :, 1:] = x[:, :, :-1]
        return canvas


@pytest.mark.parametrize(
    "body",
    [
        Gate(),
        Pasted(),
        nn.Upsample(scale_factor=1.5),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.AdaptiveAvgPool2d(7),
        nn.Softmax(dim=-1),
    ],
    ids=lambda body: type(body).__name__,
)
def test_a_field_is_never_understated(body):
    assert field_of(nn.Sequential(nn.Conv2d(1, 1, 3), body)) is None


def test_linear_over_the_last_dimension_keeps_the_field():
    class ChannelMixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv2d(1, 4, 5), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert field_of(ChannelMixer()) == (5, 5)
