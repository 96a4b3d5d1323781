"""The training loop: walk the model's stages, step, log, evaluate, save, stop when asked.

Where a run stands is three integers (stage, step within it, steps before it). Everything random
is a function of them, so a checkpoint holds no random state, and a resumed run jumps to its step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from cnnctl.data.base import Dataset
from cnnctl.data.loaders import Loader, Share
from cnnctl.engine.averaging import Average
from cnnctl.engine.checkpoint import Checkpoints, State
from cnnctl.engine.distributed import Processes, parallel
from cnnctl.engine.inference import Watch as Watcher
from cnnctl.engine.inference import evaluate, held_at_once
from cnnctl.engine.journal import Journal
from cnnctl.engine.machine import Machine, faults_explained
from cnnctl.engine.schedules import Schedule
from cnnctl.engine.signals import StopFlag, Stopped
from cnnctl.engine.stage_times import StageTimes
from cnnctl.engine.trainer import Trainer, fused_on, load_optimizer, parameter_groups
from cnnctl.engine.watch import Watch
from cnnctl.errors import Exit, UserError
from cnnctl.models.base import FitStage, GradientStage, Losses, Model, Stage
from cnnctl.randomness import key, seed_torch
from cnnctl.structures import Batch

_UNWATCHED = contextlib.nullcontext()
STOP_EVERY = 10  # steps between two agreements of several processes on whether to stop


@dataclass
class Progress:
    """Everything that changes during training and is not a tensor."""

    stage: int = 0
    step: int = 0  # within the stage
    total_steps: int = 0  # over all stages
    best: float | None = None  # the best value of the monitored metric so far
    best_step: int = 0
    stale: int = 0  # evaluations since then
    stopped_early: bool = False
    owed: bool = False  # an evaluation is due at this step and not done
    metrics_bytes: int = 0  # length of metrics.jsonl
    pending: list[dict[str, float]] = field(default_factory=list)  # losses not yet logged


class _Step(nn.Module):
    """A stage's loss as a module, because DistributedDataParallel hooks onto ``forward``."""

    def __init__(self, model: Model, loss: Callable[..., Losses]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Losses:
        return self.loss(batch.images, batch.targets)


@dataclass
class Loop:
    """One training run; ``fit`` returns when it is done and raises ``Stopped`` when asked to stop.

    Args:
        describe: what makes a checkpoint describe itself: config, classes, versions.
        monitor: the metric that chooses best.pt.
        larger_is_better: which way ``monitor`` goes.
        evaluator: makes a fresh evaluator of a data set.
    """

    trainer: Trainer
    model: Model
    machine: Machine
    processes: Processes
    train: Loader
    val: Loader | None
    optimizer: Callable[[Iterable[Any]], optim.Optimizer]
    schedule: Schedule
    evaluator: Callable[[Dataset], Any]
    monitor: str
    larger_is_better: bool
    seed: int
    describe: dict[str, Any]
    journal: Journal
    stop: StopFlag
    checkpoints: Checkpoints | None = None  # None in all processes but the first
    progress: Progress = field(default_factory=Progress)
    resumed: State | None = None
    stages: Callable[[], Sequence[Stage]] | None = None  # None: the model's own
    times: StageTimes = field(default_factory=StageTimes)

    def fit(self) -> None:
        """Train through all stages from wherever ``progress`` stands.

        Raises:
            Stopped: a signal came; the run is saved.
            UserError: the loss is not finite (code 6), memory or disk ran out (code 5).
        """
        self.prepare()
        self._load()
        if self.checkpoints is not None:
            self.times.open(self.checkpoints.directory, goes_on=self.progress.total_steps > 0)
        if self.progress.step > self.total:
            raise UserError(
                f"the run is at step {self.progress.step} and cannot end at {self.total}",
                field="trainer.steps" if self.trainer.steps else "trainer.epochs",
                advice="take more, or start a new run with init_from=",
            )
        if not self.progress.total_steps:
            self._save(None, best=False)  # a disk that cannot hold it is found out now
        stages = (self.stages or self.model.stages)()
        for index in range(self.progress.stage, len(stages)):
            if index != self.progress.stage:
                self.progress.stage, self.progress.step = index, 0
                self.progress.stopped_early, self.progress.stale = False, 0
            stage = stages[index]
            self.times.begin(stage.name)
            if isinstance(stage, FitStage):
                self._fit_stage(stage)
            else:
                self._gradient_stage(stage)

    def prepare(self) -> None:
        """Everything that the stages share and no checkpoint decides."""
        trainer = self.trainer
        self.total, self.per_epoch = trainer.total_steps(len(self.train.dataset))
        self.scaler = torch.amp.GradScaler(
            self.machine.device.type, enabled=self.machine.dtype == torch.float16
        )
        self.rate, self.rates, self.opt = 0.0, [0.0], None
        self.still: list[nn.Module] = []  # modules that this stage leaves in evaluation mode
        self.trained = {id(p) for p in self.model.parameters() if p.requires_grad}
        self.watch = Watch(self.model) if trainer.watch and self.processes.first else None
        self.average = None
        if trainer.ema:
            self.average = Average(self.model, trainer.ema, trainer.lookahead)
        self.model.training_images = len(self.train.dataset)

    def evaluated_model(self) -> Model:
        """The averaged weights where there are any."""
        return self.model if self.average is None else self.average.model

    def _evaluated_at_once(self) -> int:
        return self.trainer.evaluation_batch(self.model, self.train.augmentation)

    def _load(self) -> None:
        if self.resumed is None:
            return
        state = self.resumed
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.progress.pending = state["pending"][self.processes.rank]
        patience = self.trainer.patience  # a resumed run may have another one
        self.progress.stopped_early = patience is not None and self.progress.stale >= patience

    def _fit_stage(self, stage: FitStage) -> None:
        """Has no position: interrupted, it starts anew. Every process fits on all of the data."""
        progress = self.progress
        self.resumed = self.opt = None  # none of a stage before belongs in its checkpoints
        with self.journal.stage(stage.name, 1, 1, progress.step):
            if not progress.step:
                self._show_all(stage.name, stage.fit)
                if self.average is not None:  # what was solved for belongs to these very weights
                    self.average.model.load_state_dict(self.model.state_dict())
                progress.step, progress.owed = 1, True
                progress.total_steps += 1
                self.journal.stepped(1, 0)
            if progress.owed:
                self._evaluate_and_save(stage.evaluate)

    def _show_all(self, name: str, see: Callable[[Iterator[Batch]], None]) -> None:
        """Give the training data to ``see``, in order and not augmented."""
        self._share_buffers(self.model)
        self.model.eval()
        loaded = self.train.in_order(self._evaluated_at_once(), Share(), as_trained=True)
        held = held_at_once(self.model, f"stage {name}")
        with torch.no_grad(), faults_explained(held):
            see(held.seen(self._until_asked(batch for _, batch in loaded)))

    def _until_asked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """All of them, unless a signal comes: a fit that is cut off is not kept."""
        stop = self._stop_within()
        for batch in batches:
            if stop.signum is not None:
                raise Stopped(stop.signum)
            yield batch

    def begin(self, stage: GradientStage) -> Callable[[Batch], None]:
        """Ready to train ``stage`` from where ``progress`` stands.

        Returns:
            what takes one step with a batch.
        """
        progress, trainer = self.progress, self.trainer
        parameters = list(stage.params())
        self.trained = {id(parameter) for parameter in parameters}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in self.trained)
        optimizer = fused_on(self.machine.device, self.optimizer)
        self.opt = optimizer(parameter_groups(parameters, trainer.decay_norm_and_bias, stage))
        for group in self.opt.param_groups:
            if "decay" in group:
                group["weight_decay"] *= group["decay"]
        self.rates = [group["lr"] * group.get("share", 1.0) for group in self.opt.param_groups]
        if self.resumed is not None and self.resumed["optimizer"] and progress.step:
            load_optimizer(self.opt, self.resumed["optimizer"])
        self.resumed = None
        self._share_buffers(self.model)  # of a stage before, which this one may look at
        step_module: nn.Module = _Step(self.model, stage.loss)
        if self.processes.world > 1:
            step_module = parallel(step_module)
        if stage.first is not None:
            with self.machine.autocast():
                self._show_all(stage.name, stage.first)
        self.still = list(stage.still())
        self._train_mode()
        return lambda batch: self._step(step_module, stage, batch, parameters)

    def _gradient_stage(self, stage: GradientStage) -> None:
        progress, trainer = self.progress, self.trainer
        step = self.begin(stage)
        interval = trainer.evaluation_interval(self.per_epoch)
        with self.journal.stage(stage.name, self.total, self.per_epoch, progress.step):
            batches = self.train.train(
                progress.step, self.total, trainer.batch_size, progress.stage
            )
            if progress.owed:  # stopped on the way to an evaluation, or within it
                self._evaluate_and_save(stage.evaluate)
            for batch in batches if not progress.stopped_early else ():
                step(batch)
                self._after_step(stage, progress.step % interval == 0)
                if progress.stopped_early:
                    break

    def _step(
        self, module: nn.Module, stage: GradientStage, batch: Batch, parameters: list[nn.Parameter]
    ) -> None:
        progress, trainer, opt = self.progress, self.trainer, self.opt
        assert opt is not None
        value = key(self.seed, "step", progress.stage, progress.step, self.processes.rank)
        seed_torch(value, self.machine.device)
        factor = self.schedule.factor(progress.step, self.total, self.per_epoch)
        for group, rate in zip(opt.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.rate = self.rates[0] * factor
        if progress.step == 0:
            self.journal.first_batch(batch, progress.total_steps)
        opt.zero_grad(set_to_none=True)
        for parameter in self._resting():  # processes wait for the gradients that they began with
            parameter.requires_grad_(isinstance(module, DistributedDataParallel))
        watch = self.watch if self._is_logged(progress.step + 1) else None
        summed: Losses = {}
        for index, part in enumerate(stage.view(batch).split(trainer.accumulate)):
            more = index + 1 < trainer.accumulate and isinstance(module, DistributedDataParallel)
            with module.no_sync() if more else contextlib.nullcontext():  # pyright: ignore
                with self.machine.autocast(), watch.forward() if watch else _UNWATCHED:
                    losses = module(part)
                total = torch.stack(list(losses.values())).sum() / trainer.accumulate
                self.scaler.scale(total).backward()
            for name, loss in losses.items():
                share = loss.detach() / trainer.accumulate
                summed[name] = summed[name] + share if name in summed else share
        progress.pending.append(summed)  # pyright: ignore[reportArgumentType]  # tensors until logged
        if self.machine.device.type == "cpu":  # costs nothing here, a synchronisation elsewhere
            self._settle()
        self._prepare_gradients(parameters, watch)
        self.scaler.step(opt)
        self.scaler.update()
        progress.step += 1
        progress.total_steps += 1
        if self.average is not None:
            self.average.follow(self.model, progress.step, self.total)
        self.journal.stepped(progress.step, len(batch) * self.processes.world)

    def _prepare_gradients(self, parameters: list[nn.Parameter], watch: Watch | None) -> None:
        """What is done with gradients before the optimizer gets them."""
        assert self.opt is not None
        for parameter in self._resting():
            parameter.grad = None  # without one an optimizer leaves it alone
        if self.trainer.clip is not None or watch is not None:
            self.scaler.unscale_(self.opt)
        if watch is not None:
            watch.gradients()
        if self.trainer.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.trainer.clip)

    def _resting(self) -> list[nn.Parameter]:
        """Those whose epochs are over; a function of the step alone."""
        assert self.opt is not None
        return [
            parameter
            for group in self.opt.param_groups
            if self.progress.step >= group.get("epochs", math.inf) * self.per_epoch
            for parameter in group["params"]
        ]

    def _after_step(self, stage: GradientStage, evaluating: bool) -> None:
        """Log, evaluate, save and stop, each where it is due."""
        progress, trainer = self.progress, self.trainer
        evaluating = evaluating or progress.step == self.total
        if self._is_logged(progress.step):
            self._log()
        asked = self._asked_to_stop()
        if evaluating and not asked:
            self._evaluate_and_save(stage.evaluate)
        elif asked or self._due(trainer.save_every) or self._due(trainer.keep_every):
            progress.owed = evaluating
            with self.times.paused():
                self._save(None, best=False)
        if asked:
            raise Stopped(asked)

    def _is_logged(self, step: int) -> bool:
        """Whether the curves get a point after that step of the stage."""
        trainer = self.trainer
        evaluated = step == self.total or step % trainer.evaluation_interval(self.per_epoch) == 0
        return evaluated or step % trainer.log_every == 0

    def _settle(self) -> None:
        """Bring the losses of the last steps to the host and look at them.

        Raises:
            UserError: one is not finite (code 6).
        """
        pending: list[dict[str, Any]] = self.progress.pending  # tensors or numbers
        late = [loss for losses in pending for loss in losses.values() if isinstance(loss, Tensor)]
        known = iter(torch.stack(late).tolist() if late else ())  # the device is waited for once
        for index, losses in enumerate(pending):
            pending[index] = {
                name: next(known) if isinstance(loss, Tensor) else loss
                for name, loss in losses.items()
            }
            wrong = [name for name, loss in pending[index].items() if not math.isfinite(loss)]
            if wrong:
                # On a GPU the losses arrive later than the steps they belong to.
                on_cpu = self.machine.device.type == "cpu"
                step = self.progress.total_steps + on_cpu - (len(pending) - 1 - index)
                value = pending[index][wrong[0]]
                self._diverged(f"the loss is not finite: {wrong[0]} is {value}", step)

    def _require_finite_weights(self) -> None:
        """A step with a finite loss may leave weights that no checkpoint should be replaced by."""
        parameters = dict(self.model.named_parameters())
        finite = [parameter.isfinite().all() for parameter in parameters.values()]
        if finite and not torch.stack(finite).all():
            name = next(n for n, fine in zip(parameters, finite, strict=True) if not fine)
            self._diverged(f"a weight is not finite: one of {name}", self.progress.total_steps)

    def _diverged(self, problem: str, step: int) -> None:
        raise UserError(
            f"{problem} at step {step}, learning rate {self.rate:.3g}",
            advice="lower optimizer.lr, add schedule.warmup=1 or trainer.clip=1, or look for broken"
            " images with cnnctl data check; the last good checkpoint is kept",
            code=Exit.DIVERGED,
        )

    def _log(self) -> None:
        self._settle()
        everything = self.processes.gather(self.progress.pending)
        flat = [losses for pending in everything for losses in pending]
        self.progress.pending = []
        means = {name: math.fsum(row[name] for row in flat) / len(flat) for name in flat[0]}
        self.journal.trained(self.progress.total_steps, means, self.rate)
        if self.watch is not None:
            self.journal.watched(self.progress.total_steps, self.watch.figures())

    def _evaluate_and_save(self, wanted: bool) -> None:
        progress, trainer = self.progress, self.trainer
        self.times.pause()
        progress.owed = True
        metric, best = None, self.val is None  # nothing to choose by: the newest is the best
        if wanted and self.val is not None:
            self._share_buffers(self.evaluated_model())
            evaluator = self.evaluator(self.val.dataset)
            try:
                on_train = self._score_training() if trainer.score_train else {}
                watch = self.journal.watch(len(self.val.dataset), self._stop_within())
                metrics = self._score(self.val, evaluator, watch)
            except (Stopped, UserError):  # an image that cannot be read costs no training
                self._save(None, best=False)
                raise
            metric = metrics.get(self.monitor, math.nan)  # nothing labelled: no figure
            best = math.isfinite(metric) and not self._worse(metric)
            better = best and metric != progress.best  # the newest of equals is best, not news
            if best:
                progress.best, progress.best_step = metric, progress.total_steps
            progress.stale = 0 if better else progress.stale + 1
            patience = trainer.patience
            progress.stopped_early = patience is not None and progress.stale >= patience
            self.journal.evaluated(
                progress.total_steps, metrics, evaluator, best, self.evaluated_model(), on_train
            )
        progress.owed = False
        self._save(metric, best=best)
        self._train_mode()
        self.times.go_on()

    def _score(self, loader: Loader, evaluator: Any, watch: Watcher) -> dict[str, float]:
        batches = loader.in_order(self._evaluated_at_once())
        model = self.evaluated_model()
        return evaluate(model, batches, evaluator, self.machine, self.processes, watch)

    def _score_training(self) -> dict[str, float]:
        """Metrics of the training images as they are, not augmented."""
        stop = self._stop_within()

        def watch(*_: Any) -> None:
            if stop.signum is not None:
                raise Stopped(stop.signum)

        return self._score(self.train, self.evaluator(self.train.dataset), watch)

    def _stop_within(self) -> StopFlag:
        """What ends an evaluation half-way: one process alone may stop there."""
        return self.stop if self.processes.world == 1 else StopFlag()

    def _train_mode(self) -> None:
        """Layers that this stage does not train stay as they are, running statistics included."""
        self.model.train()
        for module in self.model.modules():
            own = list(module.parameters(recurse=False))
            if own and not any(id(parameter) in self.trained for parameter in own):
                module.eval()
        for module in self.still:
            module.training = False

    def _worse(self, metric: float) -> bool:
        best = self.progress.best
        if best is None:
            return False
        return metric < best if self.larger_is_better else metric > best

    def _share_buffers(self, model: Model) -> None:
        """Give all processes the first one's batch statistics: they are the ones saved."""
        if self.processes.world > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.progress.step % every == 0

    def _asked_to_stop(self) -> int | None:
        """The signal that came to any process. Processes agree now and then, not in every step."""
        if self.processes.world == 1:
            return self.stop.signum
        if self.progress.step % STOP_EVERY:
            return None
        signums = self.processes.gather(self.stop.signum)
        return next((signum for signum in signums if signum is not None), None)

    def _save(self, metric: float | None, *, best: bool) -> None:
        self._settle()
        self._require_finite_weights()
        pending = self.processes.gather(self.progress.pending)
        if self.checkpoints is None:
            return
        self.progress.metrics_bytes = self.journal.sync()
        state: dict[str, Any] = {
            **self.describe,
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.state_dict(),
            "optimizer": None if self.opt is None else self.opt.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {**asdict(self.progress), "pending": []},
            "pending": pending,  # of every process
        }
        self.checkpoints.save(
            state, metric=metric, best=best, keep=self._due(self.trainer.keep_every)
        )
        self.times.keep()
