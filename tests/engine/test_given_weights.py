"""Files of weights of every kind, and what of them goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnctl.engine import given_weights
from cnnctl.engine.given_weights import Given
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import ClassificationModel


class Net(ClassificationModel):
    """A convolution, a dense layer, and the layer of the classes."""

    def __init__(self, channels: int = 3, classes: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(2, hidden))
        self.linear = nn.Linear(hidden, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels))


NAMES = [
    *("features.0.weight", "features.0.bias", "features.2.weight", "features.2.bias"),
    *("linear.weight", "linear.bias"),
]


def tensors(seed: int = 1, **numbers: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in Net(**numbers).state_dict().items()}


def given(state: dict[str, Tensor], classes: tuple[str, ...] | None = None, own=False) -> Given:
    return Given(Path("x.pt"), state, classes, own)


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model", "parallel", "old", "safetensors"])
def test_kinds_of_files(kind, tmp_path):
    state = tensors()
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "old":  # before torch 1.6
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    elif kind == "parallel":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best": 1.0}, path)
    else:
        torch.save(state if kind == "plain" else {kind: state, "epoch": 3}, path)
    net = Net()
    taken = given_weights.take(net, given_weights.read(str(path)), ("a", "b", "c"), "weights")
    assert taken.loaded == NAMES
    assert not any(names for _, names in taken.kinds())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no tensors by name"),
        ([torch.zeros(2)], "holds no tensors by name"),
        (b"not a file of torch", "is damaged or not a checkpoint|holds more than tensors"),
        (b"", "is damaged"),
    ],
)
def test_files_that_hold_none(content, message, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        given_weights.read(str(path))
    assert caught.value.code == Exit.CHECKPOINT
    (tmp_path / "y.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        given_weights.read(str(tmp_path / "y.safetensors"))


def test_rows_of_classes_that_both_name():
    net, state = Net(), tensors(classes=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    source = given(state, ("w", "c", "a", "z"), own=True)
    taken = given_weights.take(net, source, ("a", "b", "c"), "weights")
    assert taken.loaded == NAMES[:4]
    assert taken.rebuilt == NAMES[4:]
    assert taken.rows == ["a", "c"]
    for name in NAMES[4:]:
        row = net.state_dict()[name]
        assert torch.equal(row[0], state[name][2])
        assert torch.equal(row[1], before[name][1])
        assert torch.equal(row[2], state[name][1])
    assert "rebuilt for the data's classes but for the rows of a, c: 2" in taken.text()


def test_as_many_classes_of_other_names_are_not_mistaken():
    net, state = Net(), tensors()
    before = net.linear.weight.clone()
    source = given(state, ("d", "e", "f"), own=True)
    taken = given_weights.take(net, source, tuple("abc"), "weights")
    assert (taken.rebuilt, taken.rows) == (NAMES[4:], [])
    assert torch.equal(net.linear.weight, before)
    taken = given_weights.take(net, given(state), tuple("abc"), "weights")  # names are not known
    assert taken.loaded == NAMES


def test_other_channels_share_the_sum_of_the_filters():
    net, state = Net(channels=1), tensors()
    taken = given_weights.take(net, given(state), tuple("abc"), "weights")
    assert taken.adapted == NAMES[:1]
    grey = torch.rand(2, 1, 3, 3)
    coloured = Net()
    coloured.load_state_dict(state)
    torch.testing.assert_close(net(grey), coloured(grey.expand(-1, 3, -1, -1)))


def test_what_is_left_on_either_side_is_listed():
    net, state = Net(hidden=5), tensors()
    state["extra.weight"] = torch.zeros(1)
    taken = given_weights.take(net, given(state), tuple("abc"), "init_from")
    assert taken.loaded == [*NAMES[:2], "linear.bias"]
    assert taken.unused == ["features.2.weight", "features.2.bias", "extra.weight"]
    assert taken.rebuilt == ["linear.weight"]
    assert taken.fresh == ["features.2.weight", "features.2.bias"]
    assert taken.lines() == [
        "init_from x.pt: 3 tensors taken (features.0.weight, features.0.bias, linear.bias)",
        "  rebuilt for the data's classes: 1 (linear.weight)",
        "  left as initialised: 2 (features.2.weight, features.2.bias)",
        "  not used: 3 (features.2.weight, features.2.bias, extra.weight)",
    ]
    taken.unused = [f"t{i}" for i in range(9)]
    assert taken.lines()[-1] == "  not used: 9 (t0, t1, t2, t3 and 5 more)"
    assert all(f"  t{i}\n" in taken.text() for i in range(9))


def test_names_of_the_part_that_holds_the_network():
    class Wrapped(ClassificationModel):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1)
            self.network = Net()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.network(pixels)

    net, state = Wrapped(), tensors()
    taken = given_weights.take(net, given(state), tuple("abc"), "weights")
    assert taken.loaded == [f"network.{name}" for name in NAMES]
    assert torch.equal(net.network.linear.weight, state["linear.weight"])


def test_no_tensor_fits():
    source = given({"stem.weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"begins with stem\.weight, the model with features\.0\."):
        given_weights.take(Net(), source, tuple("abc"), "weights")


def test_names_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert given_weights.is_name("IMAGENET1K_V1")
    assert not any(map(given_weights.is_name, ("weights.pt", "runs/A", "imagenet", "./X")))
    (tmp_path / "BEST").mkdir()
    assert not given_weights.is_name("BEST")


@pytest.mark.parametrize(
    ("whole", "rebuilt", "anew"),
    [
        (True, (), []),
        (True, ("head",), ["head.weight", "head.bias"]),
        (False, (), ["head.weight", "head.bias"]),
    ],
)
def test_what_published_weights_hold(whole, rebuilt, anew):
    """Those of a whole network are all there; those of a backbone leave the head as it was."""
    model: Any = torch.nn.ModuleDict(
        {"backbone": torch.nn.Linear(2, 3), "head": torch.nn.Linear(3, 1)}
    )
    model.rebuilt, model.published = rebuilt, ()
    taken = given_weights.of_published(model, "COCO_V1", whole)
    assert taken.rebuilt == anew
    assert taken.loaded == [name for name in model.state_dict() if name not in anew]
