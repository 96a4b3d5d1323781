"""When pictures are drawn, of which images, and what TensorBoard then finds in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cnnctl.engine.album import SELDOM, SHOWN, Album
from cnnctl.engine.log import Board
from cnnctl.structures import Batch, Images, Predictions, Targets


class Pad(Board):
    def __init__(self):
        super().__init__(None, 0)
        self.drawn: list[tuple[str, int]] = []

    def picture(self, name, picture, step):
        self.drawn.append((name, step))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch_of(first: int, count: int) -> Batch:
    ids = torch.arange(first, first + count)
    pixels = ids.float().view(-1, 1, 1, 1)
    return Batch(Images(pixels, [(1, 1)] * count, [(1, 1)] * count), Targets(ids, label=ids % 3))


def album(board: Any, clock: Clock, cost: float = 0.0, seen: list | None = None) -> Album:
    def draw(kept, evaluator, model):
        clock.now += cost
        if seen is not None:
            seen.append(kept)
        return {"pic": torch.zeros(1, 1, 3)}

    return Album(board, lambda batch: {"batch": torch.zeros(1, 1, 3)}, draw, clock)


def evaluate(book: Album, step: int, best: bool, counts=(10,)) -> None:
    book.begin(sum(counts))
    first = 0
    for count in counts:
        batch = batch_of(first, count)
        book.keep(batch, Predictions(log_probs=batch.images.pixels.flatten(1)))
        first += count
    book.evaluation(None, cast(Any, torch.nn.Identity()), step, best)


def test_first_then_new_best_ones_seldom_then_the_last():
    board, clock = Pad(), Clock()
    book = album(board, clock)
    for step, (now, best) in enumerate(
        [(0, False), (1, True), (SELDOM + 1, False), (SELDOM + 2, True), (SELDOM + 3, True)]
    ):
        clock.now = now
        evaluate(book, step, best)
    assert board.drawn == [("pic", 0), ("pic", 3)]
    book.finish()
    assert board.drawn == [("pic", 0), ("pic", 3), ("pic", 4)]
    book.finish()  # nothing new to draw
    assert len(board.drawn) == 3


def test_costly_pictures_are_drawn_less_often():
    board, clock = Pad(), Clock()
    book = album(board, clock, cost=3.0)
    for step in range(600):
        clock.now += 1
        evaluate(book, step, True)
    spent = 3.0 * len(board.drawn)
    assert 0.03 < spent / clock.now < 0.06


@pytest.mark.parametrize("counts", [(10,), (500, 500, 7), (3,) * 40, (32,), (33,), (1,)])
def test_kept_images_are_spread_evenly_over_all_batches(counts):
    board, seen = Pad(), []
    evaluate(album(board, Clock(), seen=seen), 0, True, counts)
    ids = [index for batch, _ in seen[0] for index in batch.targets.image_id.tolist()]
    step = -(-sum(counts) // SHOWN)
    assert ids == list(range(0, sum(counts), step))
    assert len(ids) <= SHOWN
    for batch, predictions in seen[0]:
        assert predictions.log_probs[:, 0].tolist() == batch.targets.image_id.tolist()
        assert len(batch.images.sizes) == len(batch)


def test_kept_images_do_not_hold_on_to_the_batch():
    batch = batch_of(0, 100)
    kept = batch.rows(slice(0, None, 50))
    assert kept.images.pixels.untyped_storage().nbytes() == 2 * 4
    batch.images.pixels.zero_()
    assert kept.images.pixels.flatten().tolist() == [0, 50]


def test_a_fault_in_a_picture_is_a_warning(capsys):
    board = Pad()
    book = Album(board, lambda batch: {}["no such picture"], lambda *seen: {})
    book.training_batch(batch_of(0, 2), 0)
    evaluate(book, 1, True)
    assert board.drawn == []
    error = capsys.readouterr().err
    assert error == "warning: no pictures from here on: KeyError: 'no such picture'\n"


def test_without_a_board_nothing_is_kept():
    book = album(None, Clock())
    evaluate(book, 0, True)
    assert book._kept == []


@pytest.fixture(scope="module")
def logged(train, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("logged") / "run"
    assert train(directory, "trainer.test=true", "trainer.tensorboard=true") == 0
    return directory


def events(directory: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory / "tensorboard"), {"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_pictures_change_no_bit_of_a_run(logged, trained):
    for name in ("metrics.jsonl", "eval-test.json"):
        assert (logged / name).read_bytes() == (trained / name).read_bytes()
    with_board, without = (torch.load(run / "last.pt")["model"] for run in (logged, trained))
    assert all(torch.equal(with_board[name], without[name]) for name in without)


def test_what_tensorboard_finds(logged):
    found = events(logged)
    files = list((logged / "tensorboard").rglob("*"))
    assert len(files) == 1  # no sub-folder, and no second file behind which it would stop reading
    steps = {tag: [picture.step for picture in found.Images(tag)] for tag in found.Tags()["images"]}
    assert steps.pop("train/batch") == [0]
    names = "val/predictions val/mistakes val/confusion val/class_accuracy weights/first_layer"
    assert sorted(steps) == sorted(names.split())
    assert all(drawn == [7, 20] for drawn in steps.values())  # the first evaluation and the last
    records = [json.loads(line) for line in (logged / "metrics.jsonl").read_text().splitlines()]
    wanted = [(row["step"], row["val/top1"]) for row in records if "val/top1" in row]
    assert [(s.step, pytest.approx(s.value)) for s in found.Scalars("val/top1")] == wanted
    summary = json.loads((logged / "summary.json").read_text())
    assert found.Scalars("best/val_top1")[-1].value == pytest.approx(summary["best"])
    assert found.Scalars("best/test_top1")[-1].value == pytest.approx(summary["test"]["top1"])
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "widths:" in text


def test_hparams_table(logged):
    from tensorboard.plugins.hparams import metadata

    content = events(logged).PluginTagToContent(metadata.PLUGIN_NAME)
    assert metadata.EXPERIMENT_TAG not in content  # it would fix the columns for all runs
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    values = {
        name: value.number_value if value.HasField("number_value") else value.string_value
        for name, value in start.hparams.items()
    }
    assert values["model"] == "mlp"
    assert values["backbone"] == values["trainer.clip"] == "none"
    assert values["model.widths"] == "[16]"
    assert values["trainer.batch_size"] == 64
    assert values["optimizer.lr"] > 0
    assert not [name for name in values if "_target_" in name or name.startswith("hydra")]
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == 1  # success


def test_a_resumed_run_keeps_the_point_it_stopped_at(train, command, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "trainer.steps=14", "trainer.tensorboard=true") == 0
    assert command("train", f"resume={run}", "trainer.steps=20") == 0
    found = events(run)
    assert [scalar.step for scalar in found.Scalars("val/top1")] == [7, 14, 20]
    lost = [scalar.step for scalar in found.Scalars("train/loss")]
    assert lost == sorted(set(lost))
    assert 12 in lost
    assert 14 in lost
    assert 15 in lost


def test_a_picture_that_asks_the_model_leaves_it_as_it_was():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1).eval())
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def draw(kept, evaluator, model):
        assert not any(module.training for module in model.modules())
        return {"pic": model(torch.arange(4.0)[:, None]).expand(4, 3)[None]}

    board = Pad()
    book = Album(board, lambda batch: {}, draw, Clock())
    book.begin(1)
    book.evaluation(None, cast(Any, network), 1, best=True)
    assert board.drawn == [("pic", 1)]
    assert [module.training for module in network.modules()] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
