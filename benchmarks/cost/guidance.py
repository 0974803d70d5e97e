"""Costs of LaMo: guidance over a sampling step, the drift loss over a training step, and the pack over
ComfyUI's start.

    python3 dev.py bench cost/guidance                   # operations and seconds, by parts
    python3 dev.py bench cost/guidance --device cuda     # whole steps of every model that fits
    python3 dev.py bench cost/guidance --only operations # one table: operations, seconds, drift, import

Operations are counted on the meta device with every layer at its published size (see `models.py`), seconds
are measured as `seconds.py` says. The unguided step is two forward passes (CFG). Without CFG it is one, and
what guidance adds counts twice.
"""

from __future__ import annotations

import argparse
import sys

import torch

from ..kernels.measure import machine
from . import import_time
from .models import (
    MODELS,
    GuidanceCost,
    VideoModel,
    build,
    drift_operations,
    guidance_operations,
    guided_share,
    make_predictor,
    training_operations,
)
from .seconds import correction_by_parts, drift_seconds, guidance_whole, training_whole, transformer_by_parts

TABLES = ("operations", "seconds", "drift", "import")
DRIFT_TARGET = 1.005
DRIFT_MODELS = tuple(model for model in MODELS if model.name in ("Wan 2.1 1.3B", "CogVideoX-2B"))
"""The smallest of each family: the drift loss costs the same beside a larger one."""


def verdict(value: float, target: float | None) -> str:
    """A table cell: the target and whether it is met."""
    return "-" if target is None else f"{target:g} ({'met' if value <= target else 'missed'})"


def guidance_row(model: VideoModel, cost: GuidanceCost, unit: str) -> str:
    """One line of the first two tables."""
    form = (lambda value: f"{value:.2e}") if unit == "operations" else (lambda value: f"{value:.3g} s")
    cells = [model.name, "x".join(map(str, model.latent)), form(cost.step), form(cost.correction)]
    cells += [f"{cost.active:.4f}", f"{cost.average:.4f}", verdict(cost.average, model.target)]
    return f"| {' | '.join(cells)} |"


def guidance_head(unit: str, steps: int, share: float) -> str:
    """The head of the first two tables."""
    return (
        f"| model | latent | unguided step, {unit} | guidance | guided / unguided, guided step | "
        f"average over {steps} steps, {share:.0%} guided | target |\n|---|---|---|---|---|---|---|"
    )


def print_operations(steps: int, share: float) -> None:
    """Operations of one step, whole models on the meta device."""
    parameters = sum(parameter.numel() for parameter in make_predictor().parameters())
    print(
        f"\nOperations (predictor of {parameters / 1e6:.1f}M parameters: forward, vector-Jacobian product)\n"
    )
    print(guidance_head("operations", steps, share))
    for model in MODELS:
        print(guidance_row(model, guidance_operations(model, share=share), "operations"), flush=True)


def print_seconds(steps: int, share: float, device: str, repeats: int) -> None:
    """Seconds of one step: whole on a GPU, by parts on a processor."""
    on_gpu = device.startswith("cuda")
    how = "whole steps, bfloat16" if on_gpu else "by parts at the real width and height, float32"
    print(f"\nSeconds ({how})\n")
    print(guidance_head("seconds", steps, share))
    corrections: dict[tuple[int, int, int], float] = {}
    for model in MODELS:
        try:
            if on_gpu:
                cost = whole(model, device, share, repeats)
            else:
                if model.latent not in corrections:
                    corrections[model.latent] = correction_by_parts(model.latent, repeats=repeats)
                forward = transformer_by_parts(model, repeats=repeats)
                cost = GuidanceCost(step=2 * forward, correction=corrections[model.latent], share=share)
        except (torch.OutOfMemoryError, MemoryError):
            print(f"| {model.name} | does not fit into memory |||||||")
            continue
        finally:
            if on_gpu:
                torch.cuda.empty_cache()
        print(guidance_row(model, cost, "seconds"), flush=True)


def whole(model: VideoModel, device: str, share: float, repeats: int) -> GuidanceCost:
    """A whole step on a GPU, in bfloat16 as ComfyUI runs it there."""
    backbone = build(model, device=device, dtype=torch.bfloat16)
    return guidance_whole(
        backbone, model.latent, make_predictor(device, torch.bfloat16), share=share, repeats=repeats
    )


def print_drift(device: str, repeats: int) -> None:
    """The drift loss over a training step, operations and seconds."""
    on_gpu = device.startswith("cuda")
    print("\nDrift loss over a plain training step (one clip, full fine-tune, forward and backward)\n")
    parts = "drift loss | with / without"
    print(f"| model | step, operations | {parts} | step, seconds | {parts} | target |")
    print("|---|---|---|---|---|---|---|---|")
    for model in DRIFT_MODELS:
        backbone = build(model)
        counted, added = training_operations(backbone, model.latent), drift_operations(backbone, model.latent)
        try:
            if on_gpu:
                step, drift = training_whole(
                    build(model, device=device, dtype=torch.bfloat16), model.latent, repeats=repeats
                )
            else:
                step = transformer_by_parts(model, repeats=repeats, training=True)
                drift = drift_seconds(
                    build(model, device="cpu", num_layers=1), model.latent, device, repeats=10
                )
        except (torch.OutOfMemoryError, MemoryError):
            step = drift = float("nan")
        ratio = 1 + drift / step
        cells = [model.name, f"{counted:.2e}", f"{added:.1e}", f"1 + {added / counted:.0e}"]
        cells += [
            f"{step:.3g} s",
            f"{drift * 1000:.3g} ms",
            f"1 + {drift / step:.0e}",
            verdict(ratio, DRIFT_TARGET),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=TABLES, nargs="+", default=TABLES, help="tables to print; default all"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--steps", type=int, default=50, help="steps of the sampling that is averaged over")
    parser.add_argument("--active", type=float, default=0.8, help="fraction of the steps that are guided")
    parser.add_argument("--repeats", type=int, default=2, help="calls of which the fastest counts")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device} needs a GPU that torch can use, and there is none.")
    if args.steps < 1 or args.repeats < 1 or not 0 <= args.active <= 1:
        parser.error("--steps and --repeats must be at least 1, and --active must lie between 0 and 1.")
    torch.set_num_threads(1)
    share = guided_share(args.steps, args.active)
    print(machine("cuda" if args.device.startswith("cuda") else "cpu", 1))
    if "operations" in args.only:
        print_operations(args.steps, share)
    if "seconds" in args.only:
        print_seconds(args.steps, share, args.device, args.repeats)
    if "drift" in args.only:
        print_drift(args.device, args.repeats)
    if "import" in args.only:
        print(f"\nLoading the pack: {import_time.report(repeats=3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
