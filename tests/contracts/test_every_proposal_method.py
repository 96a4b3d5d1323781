"""What every option of ``proposals=`` that needs no checkpoint promises."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import cnnctl
from cnnctl.data.proposals import opencv
from cnnctl.data.proposals.base import ProposalMethod
from cnnctl.errors import UserError

FOLDER = Path(cnnctl.__file__).parents[1] / "conf" / "proposals"
OPTIONS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"none", "rpn"})
SIZES = [(3, 1, 1), (1, 5, 7), (3, 5, 7), (3, 2, 300), (3, 300, 2), (1, 40, 30), (3, 40, 60)]


@pytest.fixture(params=OPTIONS)
def method(request) -> ProposalMethod:
    return instantiate(OmegaConf.load(FOLDER / f"{request.param}.yaml"), _convert_="all")


def images(shape: tuple[int, ...]) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return [
        torch.full(shape, 77, dtype=torch.uint8),
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn),
    ]


@pytest.mark.parametrize("shape", SIZES)
def test_boxes_are_inside_unique_and_the_same_again(method, shape):
    again = pickle.loads(pickle.dumps(method))  # as another process gets it
    for image in images(shape):
        boxes = method.propose(image)
        assert boxes.dtype == torch.float32
        assert boxes.ndim == 2
        assert boxes.shape[1] == 4
        assert len(boxes) <= method.count
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([shape[2], shape[1]])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(boxes.unique(dim=0)) == len(boxes)
        assert torch.equal(again.propose(image), boxes)


def test_one_channel_is_three_equal_ones(method):
    grey = images((1, 30, 40))[1]
    assert torch.equal(method.propose(grey), method.propose(grey.repeat(3, 1, 1)))


def test_the_settings_are_plain_and_tell_methods_apart(method):
    settings = json.loads(json.dumps(method.settings()))
    assert settings["count"] == method.count
    own, same = (type("Search", (type(method),), {"__module__": name}) for name in "ab")
    assert len({settings["method"], own.name(), same.name()}) == 3
    assert method.remarks() == [str(remark) for remark in method.remarks()]


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "sliding_windows"])
def test_without_opencv_one_sentence_says_what_to_install(option, monkeypatch):
    method = instantiate(OmegaConf.load(FOLDER / f"{option}.yaml"), _convert_="all")
    original = builtins.__import__

    def blocked(name, *rest, **more):
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'", name="cv2")
        return original(name, *rest, **more)

    opencv.opencv.cache_clear()
    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(UserError, match="opencv-contrib, which is not installed") as absent:
        method.require()
    assert "pip install 'cnnctl[proposals]'" in str(absent.value.advice)


def test_opencv_without_its_contributed_modules(monkeypatch):
    import cv2

    opencv.opencv.cache_clear()
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(UserError, match="without its contributed modules"):
        opencv.opencv()
