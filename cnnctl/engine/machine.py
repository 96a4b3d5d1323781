"""Which device computes, in which precision, with how many threads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from cnnctl.errors import Exit, UserError
from cnnctl.structures import Batch, Images

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """A device and how it is used.

    Args:
        device: where the model and its batches are.
        dtype: of autocast; float32 switches autocast off.
        channels_last: memory format of the model and its images.
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    def autocast(self) -> torch.autocast:
        reduced = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=reduced)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        model = model.to(self.device)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return model

    def precision(self) -> str:
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def describe(self) -> str:
        name = self.precision()
        layout = ", channels_last" if self.channels_last else ""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {name}{layout}"
        return f"{self.device.type}, {torch.get_num_threads()} threads, {name}{layout}"


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes a GPU where there is one; anything else must be there.

    Raises:
        UserError: the device is unknown (code 2) or absent (code 5).
    """
    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(
            f'there is no device "{name}"',
            field="trainer.device",
            advice="take auto, cpu, cuda, cuda:0, cuda:1 or mps",
        )
    absent = {
        "cuda": not torch.cuda.is_available(),
        "mps": not torch.backends.mps.is_available(),
    }.get(name.split(":")[0], False)
    if absent:
        raise UserError(
            f"this machine (or this build of torch) has no {name}",
            field="trainer.device",
            advice="take trainer.device=auto",
            code=Exit.MACHINE,
        )
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"there is no {device}: this machine has {torch.cuda.device_count()} GPUs",
                field="trainer.device",
                code=Exit.MACHINE,
            )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the hardware computes it natively, else fp32.

    On a CPU that is AMX or AVX512-BF16; elsewhere bf16 is emulated and slower than fp32.
    """
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UserError(
                "fp16 is for GPUs", field="trainer.precision", advice="take bf16, fp32 or auto"
            )
        return PRECISIONS[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        native = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def cores() -> int:
    """CPU cores that this process may use (a container may allow fewer than there are)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int | None, processes: int) -> None:
    """Fix the CPU threads: another count rounds sums differently, and so gives other bits.

    Raises:
        UserError: there are more of them than cores (code 5).
    """
    if threads is not None and threads > cores():
        raise UserError(
            f"is {threads}, and this machine has {cores()} core{'s'[: cores() > 1]}",
            field="trainer.threads",
            advice=f"take at most trainer.threads={cores()}; null takes all of them",
            code=Exit.MACHINE,
        )
    if threads is None and processes == 1 and "OMP_NUM_THREADS" in os.environ:
        return  # the user has chosen
    torch.set_num_threads(threads or max(1, cores() // processes))


def set_deterministic(wanted: bool) -> None:
    """Make torch refuse operators without a deterministic form (it names them)."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


@dataclass
class Held:
    """What the memory of a device holds at once; kept up to date, it tells what was too much.

    Args:
        during: training, evaluation or whatever else is going on.
        less: (images, (h, w)) -> the settings that make it less.
        images: at once, in this process; 0 before the first of them.
        size: (h, w) of them, in pixels.
    """

    during: str
    less: Callable[[int, tuple[int, int]], str]
    images: int = 0
    size: tuple[int, int] = (0, 0)

    def see(self, images: Images) -> None:
        self.images, self.size = len(images), (images.pixels.shape[-2], images.pixels.shape[-1])

    def seen(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.see(batch.images)
            yield batch

    def exhausted(self) -> UserError:
        if not self.images:
            return _too_large(f"the first batch of the {self.during}")
        h, w = self.size
        return UserError(
            f"out of memory in {self.during} with {self.images} image{'s'[: self.images > 1]}"
            f" of {h} x {w} at once",
            advice=self.less(self.images, self.size),
            code=Exit.MACHINE,
        )


def _too_large(what: str) -> UserError:
    return UserError(
        f"out of memory before {what}: the data or the model does not fit",
        advice="trainer.loader=streaming keeps the data off the device",
        code=Exit.MACHINE,
    )


@contextlib.contextmanager
def faults_explained(held: Held | None = None) -> Iterator[None]:
    """One sentence for what torch says when a machine cannot do what was asked of it.

    Out of memory (with settings that would fit better), no compiler for torch.compile, no
    deterministic form of an operator. Everything else passes through.

    Args:
        held: None where no batch is made yet.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, ValueError) as error:
        explained = _explain(error, held)
        if explained is None:
            raise
        raise explained from error


def _explain(error: BaseException, held: Held | None) -> UserError | None:
    text = str(error)
    exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if exhausted or "can't allocate memory" in text:
        return held.exhausted() if held else _too_large("the first batch")
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return UserError(
            f"torch.compile does not work here: {text.splitlines()[0]}",
            field="trainer.compile",
            advice="take trainer.compile=false, or install a C++ compiler",
            code=Exit.MACHINE,
        )
    if "Expected more than 1 value per channel" in text:
        return UserError(
            "batch normalisation needs more than one value a channel, and a batch gives it one",
            field="trainer.batch_size",
            advice="take a larger trainer.batch_size or a smaller trainer.accumulate",
        )
    if "deterministic" in text and "use_deterministic_algorithms" in text:
        return UserError(
            text.split(". ")[0],
            field="trainer.deterministic",
            advice="take trainer.deterministic=false, or another model or device",
            code=Exit.MACHINE,
        )
    return None
