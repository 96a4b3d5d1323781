from __future__ import annotations

import json

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from cnnctl.data.loaders import Normalize
from cnnctl.errors import Exit, UserError
from cnnctl.models import nearest_neighbour
from cnnctl.models.nearest_neighbour import NearestNeighbour, voted
from cnnctl.structures import Batch, Images, Targets

MEAN, STD = (0.2, 0.5, 0.7), (0.3, 0.2, 0.1)


def batch(pixels: torch.Tensor, labels: torch.Tensor) -> Batch:
    """(N, C, h, w) uint8 as a loader gives it."""
    channels, size = pixels.shape[1], [(pixels.shape[2], pixels.shape[3])] * len(pixels)
    normalize = Normalize(MEAN[:channels], STD[:channels], torch.device("cpu"))
    return Batch(Images(normalize(pixels), size, size), Targets(torch.arange(len(pixels)), labels))


def some(count: int, channels: int, side: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, channels, side, side), generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return batch(pixels.to(torch.uint8), labels)


def fitted(train: Batch, k: int, distance: str, classes: int = 4) -> NearestNeighbour:
    shape = train.images.pixels.shape
    parts = (shape[1], classes, (shape[2], shape[3]), MEAN[: shape[1]], STD[: shape[1]])
    model = NearestNeighbour(*parts, k=k, distance=distance)  # pyright: ignore[reportArgumentType]
    half = len(train) // 2
    model.remember(iter([train.rows(slice(0, half)), train.rows(slice(half, None))]))
    return model


def log_probs(model: NearestNeighbour, batch: Batch) -> torch.Tensor:
    found = model.predict(batch.images).log_probs
    assert found is not None
    return found


@pytest.mark.parametrize(("distance", "p"), [("L1", 1), ("L2", 2)])
@pytest.mark.parametrize("at_once", [1 << 23, 5000])  # in one part, in many
def test_is_scikit_learns(distance, p, at_once, monkeypatch):
    monkeypatch.setattr(nearest_neighbour, "_AT_ONCE", at_once)
    train, test = some(60, 3, 20, 0), some(9, 3, 20, 1)  # 1200 numbers: more than one slice
    model = fitted(train, 5, distance)
    oracle = KNeighborsClassifier(5, p=p, algorithm="brute")
    oracle.fit(model.examples.numpy(), model.labels.numpy())
    queries = model._bytes(test.images.pixels)
    _, expected = oracle.kneighbors(queries.numpy())
    assert model.nearest(queries).tolist() == expected.tolist()
    votes = torch.from_numpy(oracle.predict_proba(queries.numpy())) * 5
    probabilities = log_probs(model, test).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(9))
    assert (6 * probabilities).floor().tolist() == votes.round().tolist()


def test_what_is_remembered_is_the_bytes():
    train = some(6, 1, 3, 2)
    model = fitted(train, 1, "L2")
    assert model.examples.dtype == torch.uint8
    pixels = (train.images.pixels * STD[0] + MEAN[0]) * 255
    assert model.examples.tolist() == pixels.round().flatten(1).tolist()
    assert (
        log_probs(model, train).argmax(1).tolist() == model.labels.tolist()
    )  # each is nearest to itself


def test_of_equally_near_images_the_first_is_nearer():
    pixels = torch.tensor([9, 5, 1, 5, 5]).to(torch.uint8).reshape(5, 1, 1, 1)
    model = fitted(batch(pixels, torch.tensor([0, 3, 1, 2, 2])), 3, "L1")
    assert model.nearest(torch.tensor([[5], [8]]).to(torch.uint8)).tolist() == [
        [1, 3, 4],
        [0, 1, 3],
    ]


def test_votes_by_hand():
    """Neighbours 2, 1, 1 of four classes: nearness 0, 2/3, 1, 0, so a vote of 3, 5, 6, 3 / 17."""
    shares = voted(torch.tensor([[2, 1, 1]]), 4).exp()
    expected = torch.tensor([[3 / 17, 2 + 5 / 17, 1 + 6 / 17, 3 / 17]]) / 4
    torch.testing.assert_close(shares, expected)
    tied = voted(torch.tensor([[3, 0, 0, 3], [0, 3, 3, 0]]), 4)
    assert tied.argmax(1).tolist() == [3, 0]
    many = torch.arange(200).flip(0)[None] % 2  # 100 votes each, 1 is the nearest
    assert voted(many, 1000).argmax(1).tolist() == [1]


def test_comes_back_with_as_many_images_as_it_had():
    train = some(7, 1, 4, 3)
    model, fresh = fitted(train, 2, "L2"), NearestNeighbour(1, 4, (4, 4), MEAN[:1], STD[:1], k=2)
    torch.testing.assert_close(log_probs(fresh, train).exp(), torch.full((7, 4), 0.25))
    fresh.load_state_dict(model.state_dict())
    assert len(fresh.examples) == 7
    assert log_probs(fresh, train).tolist() == log_probs(model, train).tolist()
    other = NearestNeighbour(1, 4, (5, 4), MEAN[:1], STD[:1])
    with pytest.raises(RuntimeError, match="size mismatch for examples"):
        other.load_state_dict(model.state_dict())


def test_more_neighbours_than_images_is_one_sentence():
    with pytest.raises(UserError, match=r"model\.k: is 9, and there are only 6 training images"):
        fitted(some(6, 1, 3, 4), 9, "L2")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"k": 0}, "k must be at least 1, got 0"), ({"distance": "L3"}, 'must be "L1" or "L2"')],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        NearestNeighbour(1, 10, (8, 8), (0.5,), (0.5,), **change)


def test_a_run_from_the_command_line(command, capsys, tmp_path):
    """Remembered, scored, taken up again from the checkpoint, and refused where k is too large."""
    run, quiet = tmp_path / "run", ("trainer.tensorboard=false", "trainer.threads=1")
    model = ("model=nearest_neighbour", "model.k=3", *quiet)
    assert command("train", *model, f"hydra.run.dir={run}") == 0
    out = capsys.readouterr().out
    assert "fitted at once, without gradients" in out
    assert "images/s  *" in out
    assert "steps" not in out
    assert command("eval", f"checkpoint={run}") == 0
    written = json.loads((run / "eval-test.json").read_text())
    assert written["top1"] == json.loads((run / "summary.json").read_text())["test"]["top1"] > 0.98
    capsys.readouterr()
    assert command("train", f"resume={run}") == 0
    assert "already complete" in capsys.readouterr().out
    many = ("model.k=2000", f"hydra.run.dir={tmp_path / 'many'}")
    assert command("train", *model, *many) == Exit.CONFIG
    assert "model.k: is 2000, and there are only 1078" in capsys.readouterr().err
