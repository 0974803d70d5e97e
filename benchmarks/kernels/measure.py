"""The common part of kernel benchmarks: a kernel's description, and a measurement in a process of its own.

Time is the best of a few calls after a first one: by the wall clock, or the processor time of all threads,
which tells more about a machine that other programs share (take one thread then: waiting threads count as
busy). Peak memory on a CPU is how far the process's resident memory rises above what it was just before the
first call (Linux: the high-water mark of /proc/self/status, set back before the call; elsewhere getrusage's
maximum); on a GPU it is what torch's allocator says. Inputs are not counted, outputs and gradients are.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20
MODULE = f"{__package__}.measure"
Step = Callable[[], object]
"""One forward and backward pass; returns the loss."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One row group of the table."""

    name: str
    what: str
    """One line for the reader."""
    prepare: Callable[..., Step]
    """prepare(variant, device, **shape) builds the inputs and returns the step to measure."""
    shapes: tuple[dict[str, Any], ...]
    variants: tuple[str, ...]
    """The first is ours, the others are what it is compared with."""
    flops: Callable[..., float] = field(default=lambda **shape: 0.0)
    """Multiplications and additions our formula cannot do without, forward and backward."""
    bytes: Callable[..., float] = field(default=lambda **shape: 0.0)
    """Bytes that must be read or written once, where that is the limit."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Findings of one process."""

    seconds: float
    """Best of the calls; nan if the variant could not run."""
    peak: float
    """MiB above the inputs."""
    note: str = ""
    """Why there is no figure."""


def measure(
    module: str,
    kernel: str,
    variant: str,
    shape: dict[str, Any],
    *,
    device: str,
    threads: int,
    repeat: int,
    clock: str,
) -> Measurement:
    """Runs one variant of one of a module's KERNELS in a fresh process.

    clock: "wall" or "processor"; repeat: timed calls after the first, 0 times the first itself.
    """
    order = {"module": module, "kernel": kernel, "variant": variant, "shape": shape}
    order |= {"device": device, "repeat": repeat, "clock": clock}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", MODULE, json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Measurement(seconds=float("nan"), peak=float("nan"), note=last)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def _work(order: dict[str, Any]) -> None:
    """The measuring process."""
    import torch

    kernels = {kernel.name: kernel for kernel in importlib.import_module(order["module"]).KERNELS}
    kernel, device = kernels[order["kernel"]], order["device"]
    kernel.prepare(
        order["variant"], device, **{**order["shape"], **_tiny(order["shape"])}
    )()  # loads libraries
    step = kernel.prepare(order["variant"], device, **order["shape"])
    _limit_memory()
    try:
        first = []
        peak = peak_of(lambda: first.append(seconds_of(step, device, order["clock"])), device)
        seconds = min([seconds_of(step, device, order["clock"]) for _ in range(order["repeat"])] or first)
    except (RuntimeError, MemoryError, torch.OutOfMemoryError) as error:
        text = str(error)
        note = (
            "cannot allocate"
            if "allocate" in text or isinstance(error, MemoryError)
            else text.splitlines()[0]
        )
        print(json.dumps({"seconds": float("nan"), "peak": float("nan"), "note": note}))
        return
    print(json.dumps({"seconds": seconds, "peak": peak}))


def _tiny(shape: dict[str, Any]) -> dict[str, Any]:
    """A shape small enough to load every library without leaving a trace in memory."""
    return {"grid": [2, 5, 5]} if "grid" in shape else {"size": [5, 6, 6]}


def seconds_of(step: Step, device: str, clock: str) -> float:
    """Seconds of one call, by the wall clock or ("processor") by the processor time of this process."""
    import torch

    now = time.process_time if clock == "processor" else time.perf_counter

    if device == "cuda":
        torch.cuda.synchronize()
    start = now()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def peak_of(step: Step, device: str) -> float:
    """MiB that one call needs at its peak, beyond what was in use before."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / MIB
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / MIB


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}.")


def _limit_memory() -> None:
    """Limits memory to half of the free part: a formula that needs more fails to allocate instead of pushing
    other programs out.
    """
    try:
        import resource

        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit = _status("VmSize") + free // 2
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, StopIteration):
        pass


# -- floors --------------------------------------------------------------------------------------------------


def _prepare_rate(variant: str, device: str, size: list[int]) -> Step:
    """One large product, or one copy of memory that no cache holds."""
    import torch
    from latent_physics.kernels.matmul import product

    if variant == "copy":
        source = torch.zeros(size[0] * MIB // 4, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size[1], size[2], device=device, dtype=dtype) for _ in range(2))
    return (lambda: product(a, b)) if variant == "product" else (lambda: a @ b.t())


RATES = Kernel(
    name="rates",
    what="the machine's own limits",
    prepare=_prepare_rate,
    shapes=({"size": [512, 2400, 768]},),
    variants=("mm", "product", "copy"),
)
KERNELS = (RATES,)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured limits of the machine."""

    products: float
    """Floating-point operations a second in a large matrix product, the better of torch.mm and ours."""
    mm: float
    """The same for torch.mm."""
    memory: float
    """Bytes a second, reading and writing."""

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that arithmetic or memory must take, whichever is more."""
        return max(flops / self.products, moved / self.memory)


def measure_rates(device: str, threads: int, clock: str) -> Rates:
    """Large products and a copy of 512 MiB."""
    shape = RATES.shapes[0]
    found = {
        variant: measure(
            MODULE, "rates", variant, shape, device=device, threads=threads, repeat=5, clock=clock
        ).seconds
        for variant in RATES.variants
    }
    operations = 2 * shape["size"][1] ** 2 * shape["size"][2]
    return Rates(
        products=operations / min(found["mm"], found["product"]),
        mm=operations / found["mm"],
        memory=2 * shape["size"][0] * MIB / found["copy"],
    )


def machine(device: str, threads: int) -> str:
    """The hardware and torch's version, in words."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, {capability}, torch {torch.__version__}"


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
