"""Two processes with gloo on the CPU: the same data, losses, scores and manners as one."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cnnctl import build, compose
from cnnctl.data.digit_boxes import DigitBoxes
from cnnctl.data.digits import Digits
from cnnctl.data.loaders import ResidentLoader, Share, StreamingLoader
from cnnctl.engine import checkpoint, distributed
from cnnctl.engine.distributed import Processes
from cnnctl.errors import UserError

# The folder in which a process started by a test finds the modules beside this one.
HERE = {"PYTHONPATH": str(Path(__file__).parent)}
PATIENCE = 600  # seconds; importing torch in several processes on busy cores takes its time
RUN = ("schedule=constant", "schedule.warmup=0", "trainer.eval_batch_size=50")


def alone() -> dict[str, str]:
    """The environment without what a torchrun above these tests might have left."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start(*arguments: str, cwd: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "cnnctl", *arguments],
        cwd=cwd,
        env=alone() | HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr without what torch says of hosts that have no IPv6 or name."""
    out, err = process.communicate(timeout=PATIENCE)
    lines = [line for line in err.splitlines() if not re.match(r"\[[WI]\d|\[c10d\]", line)]
    return process.returncode, out, "\n".join(lines)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny, train):
    """Folder with the same run by one process (`one`), by two (`two`), and by torchrun."""
    folder = tmp_path_factory.mktemp("distributed")
    settings = [*tiny, *RUN, "trainer.test=true"]
    settings.remove("trainer.test=false")
    two = start("train", "hydra.run.dir=two", *settings, "trainer.devices=2", cwd=folder)
    assert train(folder / "one", *RUN, "trainer.test=true") == 0
    code, out, err = ended(two)
    assert (code, err) == (0, ""), err
    (folder / "two.txt").write_text(out)
    return folder


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_losses_and_weights_are_those_of_one_process(runs):
    """Up to the order of additions."""
    one, two = records(runs / "one"), records(runs / "two")
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for single, double in zip(one, two, strict=True):
        for name in single.keys() & {"train/loss", "val/loss", "val/nll"}:
            assert double[name] == pytest.approx(single[name], rel=1e-5), name
    weights = [checkpoint.read(runs / name / "last.pt")["model"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


def test_one_run_directory_and_one_voice(runs):
    assert {path.name for path in runs.iterdir()} == {"one", "two", "two.txt"}
    assert not list(runs.rglob("crash.txt"))
    out = (runs / "two.txt").read_text()
    assert out.count("2 process(es)") == 1
    assert out.count("summary") == 1
    names = [{path.name for path in (runs / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1]


def test_scores_are_those_of_one_process_to_the_last_digit(runs, command):
    """What two processes scored at the end, one scores again from their checkpoint."""
    by_two = (runs / "two" / "eval-test.json").read_bytes()
    assert command("eval", f"checkpoint={runs / 'two' / 'best.pt'}") == 0
    assert (runs / "two" / "eval-test.json").read_bytes() == by_two
    by_one = json.loads((runs / "one" / "eval-test.json").read_text())
    assert by_one.keys() == json.loads(by_two).keys() >= {"top1", "top5", "nll", "loss", "images"}
    assert by_one["images"] == json.loads(by_two)["images"] == 360


@pytest.mark.slow
def test_two_processes_detect_as_one(tmp_path, tiny, command):
    """RetinaNet's losses are means over images and it draws nothing at random; batch norm is fixed,
    whose statistics would be those of half a batch."""
    left_out = ("model", "trainer.test", "trainer.steps", "trainer.batch_size")
    settings = [text for text in tiny if not text.startswith(left_out)]
    settings += ["task=detect", "model=retinanet", "model.width=32", "model.frozen_norm=true"]
    settings += ["data.size=64", "data.train_images=24", "data.val_images=7", "data.test_images=9"]
    settings += ["optimizer=sgd", "optimizer.lr=1e-3", "trainer.test=true", "trainer.steps=6"]
    settings += ["trainer.batch_size=4"]
    two = start("train", "hydra.run.dir=two", *settings, "trainer.devices=2", cwd=tmp_path)
    assert command("train", f"hydra.run.dir={tmp_path / 'one'}", *settings) == 0
    code, _, err = ended(two)
    assert (code, err) == (0, ""), err
    weights = [checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)
    by_two = (tmp_path / "two" / "eval-test.json").read_text()
    assert command("eval", f"checkpoint={tmp_path / 'two' / 'best.pt'}") == 0
    again = json.loads((tmp_path / "two" / "eval-test.json").read_text())
    assert again == json.loads(by_two)
    assert again["images"] == 9


@pytest.mark.slow
def test_two_processes_segment_as_one(tmp_path, mask_folder, tiny, command):
    """Images of many sizes. No batch norm, whose statistics would be those of half a batch, and no
    Dice or class weights, whose quotients are not means over images either."""
    settings = [text for text in tiny if not text.startswith(("model", "trainer.test"))]
    settings += ["task=segment", "model=unet", "model.width=4", "model.depth=2", "model.norm=false"]
    settings += ["data=masks", f"data.root={mask_folder}", "data.channels=1", "trainer.steps=8"]
    settings += ["augmentation.size=24", "augmentation.scale=[1,1]", "trainer.test=true"]
    settings += ["optimizer=sgd", "task.dice=0", "task.class_weights=none"]
    settings = [
        text for text in settings if text not in ("trainer.steps=20", "trainer.batch_size=64")
    ]
    two = start("train", "hydra.run.dir=two", *settings, "trainer.devices=2", cwd=tmp_path)
    assert command("train", f"hydra.run.dir={tmp_path / 'one'}", *settings) == 0
    code, _, err = ended(two)
    assert (code, err) == (0, ""), err
    weights = [checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)
    by_two = json.loads((tmp_path / "two" / "eval-test.json").read_text())
    assert command("eval", f"checkpoint={tmp_path / 'two' / 'best.pt'}") == 0
    again = json.loads((tmp_path / "two" / "eval-test.json").read_text())
    assert again["confusion"] == by_two["confusion"]
    assert sum(map(sum, again["confusion"])) == again["labelled_pixels"] > 0


def test_a_resume_needs_as_many_processes(runs, command, capsys):
    assert command("train", f"resume={runs / 'two'}", "trainer.devices=1", "trainer.steps=40") == 4
    assert "trainer.devices: 2 -> 1" in capsys.readouterr().err


@functools.cache
def scenes(count: int) -> DigitBoxes:
    return DigitBoxes("train", size=32, scale=(0.3, 0.5), train_images=count)


@functools.cache
def augmented(name: str) -> DictConfig:
    config = compose.settings(compose.compose("train", [f"augmentation={name}"]))
    config.augmentation.size = None
    return config


@pytest.mark.parametrize(("samples", "batch_size", "world"), [(150, 16, 2), (53, 12, 3), (9, 8, 4)])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", compose.groups()["augmentation"])
def test_shares_make_up_the_batch_of_one_process(name, samples, batch_size, world, streaming):
    """Sample by sample and in order, with the same augmentation, over three epochs."""
    config = augmented(name)
    if {"label", "mask"} & set(build.target(config, "augmentation").moves):
        data = Digits("train")
        data.pixels, data.labels = data.pixels[:samples], data.labels[:samples]
    else:
        data = scenes(samples)
    augmentation = build.augmentation(config, data)
    if streaming and augmentation.mixes:
        with pytest.raises(UserError, match="mixes the images of a batch") as caught:
            StreamingLoader(data, augmentation, torch.device("cpu"), 0, Share(0, world), 0)
        assert caught.value.field == "augmentation"
        return

    def loader(share: Share):
        common = (data, augmentation, torch.device("cpu"), 0, share)
        return StreamingLoader(*common, 0) if streaming else ResidentLoader(*common)

    steps = 3 * (samples // batch_size)
    whole = list(loader(Share()).train(0, min(steps, 6), batch_size, 0))
    shares = [
        list(loader(Share(rank, world)).train(0, min(steps, 6), batch_size, 0))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        ids = torch.cat([share[step].targets.image_id for share in shares])
        pixels = torch.cat([share[step].images.pixels for share in shares])
        assert torch.equal(ids, batch.targets.image_id)
        assert torch.equal(pixels, batch.images.pixels)
        truth = vars(batch.targets)
        columns = [column for column in ("label", "boxes", "labels") if truth[column] is not None]
        assert columns
        for column in columns:
            parts = [vars(share[step].targets)[column] for share in shares]
            rows = [row for part in parts for row in part]
            for row, same in zip(rows, truth[column], strict=True):
                # Boxes are filled up to the most of an image in each share.
                assert torch.equal(row, same if column == "label" else same[: len(row)])
        assert len(set(ids.tolist())) == batch_size
    for size in (1, 7, 50, 2000):  # evaluation: every sample once, in batches of one process
        dealt = sorted(
            (number, batch.targets.image_id.tolist())
            for rank in range(world)
            for number, batch in loader(Share(rank, world)).in_order(size)
        )
        assert [number for number, _ in dealt] == list(range(-(-samples // size)))
        assert [i for _, ids in dealt for i in ids] == list(range(samples))


@pytest.mark.slow
def test_torchrun_resumes_what_it_began(tmp_path, tiny):
    """``torchrun --nproc-per-node 2 -m cnnctl train``, stopped by SIGTERM, and on from there."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    settings = [name for name in tiny if not name.startswith("trainer.steps")]
    process = start(
        "train", "hydra.run.dir=run", *settings, "trainer.steps=1000000", cwd=tmp_path,
        launcher=launcher,
    )  # fmt: skip
    wait_for(tmp_path / "run" / "last.pt", process)
    process.send_signal(signal.SIGTERM)
    _, out, _ = ended(process)
    assert out.count("cnnctl train resume=") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    saved = checkpoint.read(tmp_path / "run" / "last.pt")
    reached = saved["progress"]["total_steps"]
    assert reached % 10 == 0
    assert saved["world"] == 2
    assert len(saved["pending"]) == 2
    assert len(saved["pending"][0]) == len(saved["pending"][1]) == reached % 3
    stop = reached + 5
    process = start("train", "resume=run", f"trainer.steps={stop}", cwd=tmp_path, launcher=launcher)
    code, out, err = ended(process)
    assert code == 0, err
    assert f"resumed at step {reached}" in out
    assert checkpoint.read(tmp_path / "run" / "last.pt")["progress"]["total_steps"] == stop


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "code"), [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130)]
)
def test_a_signal_to_the_parent_saves(number, group, code, tmp_path, tiny):
    """Ctrl-C reaches every process of the terminal's group, and the parent hands it on as well."""
    settings = [name for name in tiny if not name.startswith("trainer.steps")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnctl", "train", "hydra.run.dir=run", *settings,
         "trainer.steps=1000000", "trainer.devices=2"],
        cwd=tmp_path, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "run" / "last.pt", process)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    returned, out, err = ended(process)
    assert (returned, err) == (code, "")
    assert out.count("cnnctl train resume=") == 1
    saved = checkpoint.read(tmp_path / "run" / "last.pt")["progress"]["total_steps"]
    assert f"stopped at step {saved}, saved" in out


@pytest.mark.slow
def test_every_process_fits_on_all_of_the_data(tmp_path, tiny):
    """A stage without gradients is not averaged: on its share each would fit another model."""
    process = start(
        "train", "hydra.run.dir=run", *tiny, "trainer.devices=2", "trust=[staged]",
        "model._target_=staged.Staged", "~model.widths", "~model.activation", "~model.dropout",
        "~model.batch_norm", "trainer.steps=3", cwd=tmp_path,
    )  # fmt: skip
    code, _, err = ended(process)
    assert (code, err) == (0, "")
    state = checkpoint.read(tmp_path / "run" / "last.pt")
    assert state["world"] == 2
    assert state["progress"]["total_steps"] == 7
    assert int(state["model"]["seen"]) == len(Digits("train")) == 1078
    model, data = state["model"], Digits("train")
    everything = torch.cat([image.flatten()[None] for image, _ in data]) / 255
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    torch.testing.assert_close(
        model["mean"], ((everything - mean) / std).mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_stage_begins_with_the_same_statistics_everywhere(tmp_path, tiny):
    """Each process has those of its own images, and nothing was evaluated in between."""
    process = start(
        "train", "hydra.run.dir=run", *tiny, "trainer.devices=2", "trust=[staged]",
        "model._target_=staged.Agreed", "~model.widths", "~model.activation", "~model.dropout",
        "~model.batch_norm", "trainer.steps=3", cwd=tmp_path,
    )  # fmt: skip
    code, _, err = ended(process)
    assert (code, err) == (0, "")
    assert checkpoint.read(tmp_path / "run" / "last.pt")["progress"]["total_steps"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_of_one_process_is_one_sentence(rank, tmp_path, tiny):
    """The other is waiting in a collective call, and has nothing to say."""
    process = start(
        "train", "hydra.run.dir=run", *tiny, "trainer.devices=2", "trust=[faulty]",
        "model._target_=faulty.Faulty", f"+model.rank={rank}", cwd=tmp_path,
    )  # fmt: skip
    code, _, err = ended(process)
    assert err.splitlines() == [f"error: picture {rank}.png: is cut off", "fetch it again"]
    assert code == 3


def test_alone_everything_is_the_identity():
    processes = Processes()
    assert processes.first
    assert processes.gather("x") == ["x"]
    assert processes.from_first(3) == 3
    assert distributed.join("cpu") == processes
    processes.barrier()
    distributed.leave()


def test_other_faults_pass_through():
    with pytest.raises(distributed.LostPeer), distributed.lost_peers_explained():
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed")
    with pytest.raises(RuntimeError, match="shape"), distributed.lost_peers_explained():
        raise RuntimeError("shape '[2, 3]' is invalid")


@pytest.mark.parametrize(("world", "message"), [(3, "64 does not divide into 3 processes")])
def test_a_batch_that_the_world_does_not_divide(world, message):
    from cnnctl.engine.trainer import Trainer
    from cnnctl.errors import UserError

    with pytest.raises(UserError, match=message):
        Trainer(batch_size=64).machine(Processes(0, world, 0))
