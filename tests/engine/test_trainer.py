"""Settings of a trainer, each seen where it acts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from staged import Staged

from cnnctl.engine import checkpoint
from cnnctl.engine.loop import Loop
from cnnctl.models.base import GradientStage
from cnnctl.models.mlp import MLP
from cnnctl.structures import Batch, Images

HERE = ("model._target_=staged.Staged", "trust=[staged]", "model=mlp")
NONE = ("~model.widths", "~model.activation", "~model.dropout", "~model.batch_norm")


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_both_training_and_evaluation_compute_in_the_precision(
    precision, expected, train, tmp_path
):
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def note(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Linear):
            seen[module.training].add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    run = tmp_path / "run"
    settings = ("trainer.steps=2", "trainer.device=cpu", f"trainer.precision={precision}")
    try:
        assert train(run, *settings) == 0
    finally:
        hook.remove()
    assert seen == {True: {expected}, False: {expected}}
    weights = checkpoint.read(run / "last.pt")["model"].values()
    assert {weight.dtype for weight in weights} == {torch.float32}, "the weights stay in fp32"


def test_a_stage_is_trained_on_its_view(train, tmp_path, monkeypatch):
    """What a stage's loss gets is what its view made of the batch; evaluation sees the images."""
    trained, scored = [], []

    def upside_down_third(batch: Batch) -> Batch:
        part = batch.rows(slice(0, 24))
        return Batch(replace(part.images, pixels=part.images.pixels.flip(2) + 1000), part.targets)

    def loss(self: Staged, images: Images, targets):
        (trained if self.training else scored).append(images.pixels.clone())
        return super(Staged, self).loss(images, targets)

    def stages(self: Staged):
        return [
            GradientStage("only", lambda *b: loss(self, *b), self.parameters, upside_down_third)
        ]

    monkeypatch.setattr(Staged, "stages", stages)
    settings = ("trainer.steps=2", "trainer.accumulate=2", *HERE, *NONE)
    assert train(tmp_path / "run", *settings) == 0
    assert [len(pixels) for pixels in trained] == [12] * 4, "split after the view, not before"
    assert all(pixels.min() > 900 for pixels in trained)
    assert scored == []


@pytest.mark.parametrize("everything", [True, False])
def test_weight_decay_reaches_the_optimizer_by_kind(everything, train, tmp_path, monkeypatch):
    """Normalisation and biases get 0 unless decay_norm_and_bias asks for them as well."""
    found: dict[str, float] = {}
    original = Loop._step

    def step(self: Loop, *arguments) -> None:
        original(self, *arguments)
        assert self.opt is not None
        names = {id(p): name for name, p in self.model.named_parameters()}
        for group in self.opt.param_groups:
            found.update({names[id(p)]: group["weight_decay"] for p in group["params"]})

    monkeypatch.setattr(Loop, "_step", step)
    settings = ("optimizer.weight_decay=0.25", "model.batch_norm=true", "trainer.steps=1")
    flag = f"trainer.decay_norm_and_bias={str(everything).lower()}"
    assert train(tmp_path / "run", *settings, flag) == 0
    other = 0.25 if everything else 0.0
    assert found == {
        "features.0.weight": 0.25,
        "features.1.weight": other,
        "features.1.bias": other,
        "classifier.weight": 0.25,
        "classifier.bias": other,
    }


@pytest.mark.parametrize(("monitor", "best"), [("nll", 2), ("loss", 2), ("top1", 4)])
def test_the_best_is_the_smallest_nll_and_the_largest_top1(
    monitor, best, train, tmp_path, monkeypatch
):
    """Scores by hand, of which nll is best early and top1 late."""
    from cnnctl.engine import loop

    by_hand = iter([(0.5, 2.0), (0.6, 1.0), (0.7, 3.0), (0.8, 4.0), (0.4, 5.0)])

    def scores(*_):
        top1, nll = next(by_hand)
        return {"top1": top1, "top5": 1.0, "nll": nll, "loss": nll}

    monkeypatch.setattr(loop, "evaluate", scores)
    run = tmp_path / "run"
    each = ("trainer.steps=5", "trainer.evaluate_every_steps=1")
    assert train(run, *each, f"trainer.monitor={monitor}") == 0
    assert checkpoint.read(run / "best.pt")["progress"]["total_steps"] == best


def test_label_smoothing_is_of_training_alone(train, tmp_path, monkeypatch):
    """The same weights have the same validation loss, and hard labels, whatever the smoothing."""
    labels: dict[bool, set[bool]] = {True: set(), False: set()}
    original = MLP.loss_and_predict

    def watched(self: MLP, images: Images, targets):
        labels[self.training].add(targets.label.is_floating_point())
        return original(self, images, targets)

    soft = MLP.loss

    def trained(self: MLP, images: Images, targets):
        labels[self.training].add(targets.label.is_floating_point())
        return soft(self, images, targets)

    monkeypatch.setattr(MLP, "loss_and_predict", watched)
    monkeypatch.setattr(MLP, "loss", trained)
    still = ("trainer.steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    losses = []
    for smoothing in ("0", "0.4"):
        run = tmp_path / smoothing
        assert train(run, *still, f"augmentation.label_smoothing={smoothing}") == 0
        losses.append((run / "metrics.jsonl").read_text().split('"val/loss"')[1])
    assert losses[0] == losses[1]
    assert labels == {True: {False, True}, False: {False}}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ("model.batch_norm=true", "trainer.batch_size=1"),
            "trainer.batch_size: batch normalisation needs more than one value a channel",
        ),
        (
            ("trainer.sync_batchnorm=true", "trainer.device=cpu"),
            "trainer.sync_batchnorm: needs GPUs, and this run is on cpu",
        ),
        (("trainer.epochs=3",), "trainer.epochs: has no effect: trainer.steps=2 sets the length"),
        (("trust=foo",), "trust: must be a list"),
        (("resume=5",), "resume: must be text or null"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(settings, problem, command, tiny, tmp_path, capsys):
    own = {"trainer.steps", *(text.partition("=")[0] for text in settings)}
    given = [text for text in tiny if text.partition("=")[0] not in own]
    line = [*given, "trainer.steps=2", *settings]
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *line) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {problem}")
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error


def test_resume_null_leaves_the_other_settings_alone(train, tmp_path):
    run = tmp_path / "run"
    assert train(run, "resume=null", "trainer.steps=1", "seed=7", "optimizer.lr=0.125") == 0
    config = checkpoint.read(run / "last.pt")["config"]
    assert (config["seed"], config["optimizer"]["lr"]) == (7, 0.125)
    assert config["model"]["widths"] == [16]
