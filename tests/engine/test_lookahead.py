"""Averaged weights that training returns to, by hand, and in the loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cnnctl.engine import checkpoint
from cnnctl.engine.lookahead import kept, look_ahead
from cnnctl.engine.trainer import Trainer


def test_the_share_grows_with_the_cube_of_what_is_done():
    assert kept(0.95, 5, 0, 400) == 0
    assert kept(0.95, 5, 200, 400) == pytest.approx(0.95**5 / 8)
    assert kept(0.95, 5, 400, 400) == pytest.approx(0.95**5)


def test_the_end_between_two_returns_is_the_average():
    assert kept(0.95, 5, 476, 476) == 1
    assert kept(0.95, 5, 4, 4) == 0, "there is none yet: the model"


def test_both_meet_between_them():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    average = AveragedModel(model, use_buffers=True)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    nn.init.constant_(model[0].weight, 1.0)  # pyright: ignore[reportArgumentType]
    look_ahead(average, model, 0.9)  # the first time it begins where the model is
    nn.init.constant_(model[0].weight, 5.0)  # pyright: ignore[reportArgumentType]
    norm.running_mean.fill_(8.0)
    norm.num_batches_tracked.fill_(7)
    look_ahead(average, model, 0.75)
    for one in (model, average.module):
        assert isinstance(one, nn.Sequential)
        state = one.state_dict()
        assert state["0.weight"].tolist() == [[2.0, 2.0]] * 2  # 0.75 x 1 + 0.25 x 5
        assert state["1.running_mean"].tolist() == [2.0, 2.0]
        assert state["1.num_batches_tracked"] == 7


def test_training_returns_to_the_average(train, tmp_path):
    """Between two returns they differ, at a return they are the same; the end is the last one's."""
    settings = ("trainer.ema=0.9", "trainer.lookahead=4", "trainer.steps=10")
    assert train(tmp_path / "run", *settings, "trainer.keep_every=1") == 0
    averages = {}
    paths = sorted((tmp_path / "run").glob("step-*.pt"))
    assert len(paths) == 11
    for path in paths:
        state = checkpoint.read(path)
        step = state["progress"]["total_steps"]
        alike = [
            torch.equal(value, state["ema"][f"module.{name}"])
            for name, value in state["model"].items()
        ]
        assert all(alike) == (step in (0, 1, 4, 8, 10)), step
        averages[step] = torch.cat(
            [v.flatten() for k, v in state["ema"].items() if k != "n_averaged"]
        )
    assert torch.equal(averages[10], averages[8])
    assert not torch.equal(averages[8], averages[4])


def test_it_needs_an_average():
    with pytest.raises(ValueError, match="lookahead returns to the averaged weights: set ema too"):
        Trainer(lookahead=5)
    with pytest.raises(ValueError, match="lookahead must be between 1"):
        Trainer(lookahead=0, ema=0.9)
