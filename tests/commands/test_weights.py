"""weights= in train and eval: what is loaded, what is said, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnnctl.engine import checkpoint

MLP = ("model=mlp", "model.widths=[16]")


@pytest.fixture(scope="module")
def state_file(trained, tmp_path_factory):
    """The weights of the tiny run, as a safetensors file."""
    path = tmp_path_factory.mktemp("weights") / "mlp.safetensors"
    save_file(checkpoint.read(trained / "best.pt")["model"], path)
    return path


def test_a_run_starts_from_a_file_and_lists_every_tensor(
    state_file, trained, train, tmp_path, capsys
):
    few = ("trainer.steps=1", "optimizer.lr=1e-12", "optimizer.weight_decay=0")
    assert train(tmp_path / "run", *few, "data.only=[3,1]", f"weights={state_file}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"weights {state_file}: 2 tensors taken (features.0.weight, features.0.bias)" in said
    assert "rebuilt for the data's classes: 2 (classifier.weight, classifier.bias)" in said
    listed = (tmp_path / "run" / "weights.txt").read_text()
    assert "taken: 2\n  features.0.weight\n  features.0.bias\n" in listed
    given, taken = (
        checkpoint.read(path)["model"] for path in (trained / "best.pt", tmp_path / "run/last.pt")
    )
    torch.testing.assert_close(taken["features.0.weight"], given["features.0.weight"])
    # of a run of ours the names of the classes are known, and with them their rows
    assert train(tmp_path / "rows", *few, "data.only=[3,1]", f"weights={trained}") == 0
    taken = checkpoint.read(tmp_path / "rows" / "last.pt")["model"]
    torch.testing.assert_close(taken["classifier.bias"], given["classifier.bias"][[3, 1]])


def test_eval_scores_a_file_as_its_run_was_scored(state_file, trained, command, capsys):
    assert command("eval", *MLP, f"weights={state_file}", "trainer.threads=1",
                   "trainer.precision=fp32") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "mlp on digits, test" in said
    top1 = json.loads((trained / "eval-test.json").read_text())["top1"]
    assert f"{top1:.2%}" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=mlp", "model.widths=[8]"), "lacks 3 of the network's tensors"),
        (("model=lenet",), "holds no tensor that fits this model"),
        ((*MLP, "checkpoint=x"), "checkpoint: brings its own weights"),
    ],
)
def test_eval_refuses_what_is_not_whole(words, message, state_file, command, capsys):
    assert command("eval", *words, f"weights={state_file}") in (2, 4)
    assert message in " ".join(capsys.readouterr().err.split())


def test_eval_of_a_run_is_by_checkpoint(trained, command, capsys):
    assert command("eval", *MLP, f"weights={trained}") == 2
    assert f"checkpoint={trained}" in "".join(capsys.readouterr().err.split())


def test_one_key_and_names_that_mean_nothing(trained, train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, f"weights={trained}", f"init_from={trained}") == 2
    assert "init_from: is another name of weights=" in capsys.readouterr().err
    assert train(run, "weights=IMAGENET1K_V1") == 2
    assert 'no file "IMAGENET1K_V1", and no published weights' in capsys.readouterr().err
    assert train(run, "weights=nothing.pt") == 4
    assert "does not exist" in capsys.readouterr().err
    assert not run.exists()


def test_a_published_name_is_the_models_own_key():
    from cnnctl import build, compose

    def keys(*words: str) -> list[str | None]:
        config = compose.settings(compose.compose("train", [*words, "weights=IMAGENET1K_V1"]))
        config = build.with_published_weights(config)
        return [config[group].get("weights") for group in ("model", "backbone") if config[group]]

    assert keys("model=alexnet2014") == ["IMAGENET1K_V1"]
    assert keys("model=resnet18") == [None, "IMAGENET1K_V1"]


def test_scratch_leaves_the_weights_out(trained, train, tmp_path, capsys):
    assert train(tmp_path / "run", "trainer.steps=1", "transfer=scratch", f"weights={trained}") == 0
    assert "tensors taken" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "weights.txt").exists()


def test_how_the_weights_start(train, tmp_path):
    still = ("trainer.steps=1", "optimizer.lr=1e-12", "model.widths=[200]")
    assert train(tmp_path / "run", *still, "trainer.init=gaussian") == 0
    weight = checkpoint.read(tmp_path / "run" / "last.pt")["model"]["features.0.weight"]
    assert float(weight.std()) == pytest.approx(0.01, rel=0.03)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "top1"), [(20, 81.03), (32, 82.56), (44, 82.67), (56, 83.20)])
def test_eval_of_published_cifar_resnets(depth, top1, command, capsys):
    """akamaster's files against what was measured independently on the same lossy test images."""
    root = Path(os.environ.get("CNNCTL_DATA", "nowhere"))
    found = sorted(root.glob(f"weights/cifar10_resnet_akamaster/resnet{depth}-*.th"))
    if not found or not (root / "cifar-10-batches-bin").is_dir():
        pytest.skip("no CIFAR-10 or no published weights under $CNNCTL_DATA")
    words = ("data=cifar10", "data.verify=false", "trainer.precision=fp32")
    assert command("eval", f"model=resnet{depth}", f"weights={found[0]}", *words) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if " top1 " in line)
    assert float(row.split()[3].rstrip("%")) == pytest.approx(top1, abs=0.1)
