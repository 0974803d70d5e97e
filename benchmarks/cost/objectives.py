"""Cost that each objective adds to a training step of CogVideoX-2B: seconds and peak memory over plain
fine-tuning.

    python3 dev.py bench cost/objectives                  # 49 frames of 480x720: 13x30x45 = 17,550 tokens
    python3 dev.py bench cost/objectives --grid 13 20 30  # another token grid (F H W)
    python3 dev.py bench cost/objectives --device cuda    # the whole model in bfloat16

Every objective is the training's own class with its recipe's settings, projector included, forward and
backward from a random output of block 18 (drift: from x0) and random features of VideoMAE's shape, at the
full grid, in a process of its own (see kernels/measure.py). "VideoREPA's formula" is that projector followed
by kernels/relational.py's formula in place of ours.

The plain step (one clip, forward and backward of the denoising loss, every weight trained) runs whole on a
GPU, each block checkpointed. On a processor it would take hours, so there it is put together from parts, and
the output says so: time from one block over a slice of the tokens and its attention to all of them, times
slices, times 30 blocks (seconds.py); memory from one block over a small grid, times tokens, plus the 30
stored block inputs and the gradients of all weights by arithmetic.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import torch
from latent_physics.training.backbones import Activation
from latent_physics.training.objectives import parse
from latent_physics.training.objectives.base import Objective, StepView
from latent_physics.training.objectives.settings import PdaSettings
from torch import Tensor, nn

from ..kernels.measure import MIB, Kernel, Measurement, Step, machine, measure
from ..kernels.relational import flops, videorepa
from .models import MODELS, VideoModel, build, operations, training_operations
from .seconds import block_inputs, training_whole, transformer_by_parts

MODULE = f"{__package__}.objectives"

MODEL: VideoModel = next(model for model in MODELS if model.name == "CogVideoX-2B")
GRID = (13, 30, 45)
TEACHER_CHANNELS, TEACHER_INPUT, PATCH, SHRINK = 768, 224, 16, 3
"""VideoMAE base: its width, its own input size, its patch, and what larger clips are divided by before it
sees them."""
RECIPES = {kind: kind for kind in parse.KINDS} | {
    "drift": "drift weight=0.4 lag=2",
    "repa": "repa weight=0.5 block=18",
    "trd": "trd weight=0.5 block=18 margin=0.1",
    "soft_trd": "soft_trd weight=0.5 block=18 decay=10",
    "tsa": "tsa weight=0.5 block=18 temperature=0.1",
    "mtsa": "mtsa weight=0.5 block=18 temperature=0.1 keep=0.2",
    "pda": "pda weight=0.5 block=18 context=0.5 decay=10",
}
SEEN = 2
"""Latent frames that the world model sees before it forecasts: half a window of 16 frames."""
KERNEL_OF = {
    "trd": "TRD",
    "soft_trd": "soft TRD",
    "tsa": "tempered KL",
    "mtsa": "tempered KL, 20 % of the queries",
}
PROJECTOR, PEER = "projector alone", "VideoREPA's formula"
BLOCK_GRID = (13, 10, 15)
"""Where a processor measures the memory of one block."""


def token_width() -> int:
    """Channels of the transformer's tokens."""
    return MODEL.config["num_attention_heads"] * MODEL.config["attention_head_dim"]


def teacher_grid(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """VideoMAE's features of the clip behind a token grid: all video frames but the first, two to a feature
    frame.
    """
    frames, height, width = grid
    shrink = SHRINK if min(height, width) * PATCH > TEACHER_INPUT else 1
    return 2 * (frames - 1), *(max(1, side // shrink) for side in (height, width))


def objective_of(name: str) -> Objective:
    """An objective as the trainer builds it."""
    text = RECIPES["trd" if name in (PROJECTOR, PEER) else name]
    channels = {need.key: TEACHER_CHANNELS for need in parse.needed_teachers([text])}
    built = parse.build([text], width=token_width(), blocks=MODEL.config["num_layers"], channels=channels)
    return next(iter(built.values()))


def view_of(objective: Objective, grid: tuple[int, int, int], device: str) -> tuple[StepView, Tensor]:
    """A step as the objective sees it, and the tensor in it whose gradient goes back into the transformer."""
    frames, height, width = grid
    half = torch.bfloat16 if device == "cuda" else torch.float32
    latent = torch.randn(1, 16, frames, 2 * height, 2 * width, device=device)
    x0, signal = torch.randn_like(latent), torch.full((1,), 0.5, device=device)
    if not objective.blocks:
        return StepView(latent=latent, x0=x0.requires_grad_(), signal=signal), x0
    tokens = torch.randn(1, math.prod(grid), token_width(), device=device, dtype=half).requires_grad_()
    tap = Activation(tokens=tokens, grid=grid)
    seen = teacher_grid(grid)
    kept = (frames - 1 - SEEN - 1, *seen[1:]) if isinstance(objective.settings, PdaSettings) else seen
    features = {
        "features": torch.randn(1, TEACHER_CHANNELS, *kept, device=device),
        "exact_saliency": torch.rand(1, *seen, device=device),
        "exact_first": torch.tensor([SEEN]),
    }
    given = {objective.teachers[0].key: features}
    return StepView(
        latent=latent, x0=x0, signal=signal, taps={objective.blocks[0]: tap}, features=given
    ), tokens


def loss_of(name: str, objective: Objective, view: StepView) -> Tensor:
    """The objective, or what it is compared with."""
    if name == PROJECTOR:
        return objective.pair(view)[0].float().square().mean()
    if name == PEER:
        return videorepa(*objective.pair(view))
    return objective(view)


def prepare(variant: str, device: str, grid: list[int]) -> Step:
    """Forward and backward of one objective alone."""
    torch.manual_seed(0)
    objective = objective_of(variant).to(device)
    grid = (
        max(SEEN + 3, grid[0]),
        *grid[1:],
    )  # measure.py tries two frames first, between which nothing changes
    view, leaf = view_of(objective, grid, device)

    def step() -> Tensor:
        leaf.grad = None
        objective.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss_of(variant, objective, view)
        value.backward()
        return value.detach()

    return step


def prepare_block(variant: str, device: str, grid: list[int]) -> Step:
    """Forward and backward of one block of the transformer."""
    backbone = build(MODEL, device=device, num_layers=1)
    block: nn.Module = backbone.blocks[0].requires_grad_(True)
    inputs = block_inputs(MODEL, backbone, math.prod(grid), MODEL.text_length)
    hidden = inputs["hidden_states"].requires_grad_()

    def step() -> None:
        hidden.grad = None
        block.zero_grad(set_to_none=True)
        sum(part.sum() for part in block(**inputs)).backward()

    return step


COMPARED = ("drift", PROJECTOR, "repa", "trd", PEER, "soft_trd", "tsa", "mtsa", "pda")
SHAPES = ({"grid": list(GRID)},)
KERNELS = (
    Kernel(
        name="objective",
        what="one objective alone",
        prepare=prepare,
        shapes=SHAPES,
        variants=(*COMPARED, *(kind for kind in RECIPES if kind not in COMPARED)),
    ),
    Kernel(
        name="block",
        what="one block",
        prepare=prepare_block,
        shapes=({"grid": list(BLOCK_GRID)},),
        variants=("plain",),
    ),
)


# -- the plain step ------------------------------------------------------------------------------------------


def resized(grid: tuple[int, int, int]) -> VideoModel:
    """The model with a latent of that many tokens."""
    frames, height, width = grid
    return dataclasses.replace(MODEL, latent=(frames, 2 * height, 2 * width))


def plain_by_parts(grid: tuple[int, int, int]) -> Measurement:
    """Seconds and MiB of the plain step at `grid`, put together as the file's first lines say."""
    model = resized(grid)
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "repeat": 0, "clock": "processor"}
    block = measure(MODULE, "block", "plain", {"grid": list(BLOCK_GRID)}, **options)
    dit = build(MODEL).dit
    whole, one = (
        sum(p.numel() for p in part.parameters()) * 4 / MIB for part in (dit, dit.transformer_blocks[0])
    )
    stored = MODEL.config["num_layers"] * model.attended * token_width() * 4 / MIB
    at_work = (block.peak - one) * model.attended / (math.prod(BLOCK_GRID) + MODEL.text_length)
    return Measurement(
        seconds=transformer_by_parts(model, repeats=1, training=True), peak=at_work + stored + whole
    )


def plain_whole(grid: tuple[int, int, int]) -> Measurement:
    """Seconds and MiB of the plain step on a GPU."""
    model = resized(grid)
    backbone = build(model, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds, _ = training_whole(backbone, model.latent, repeats=2)
    return Measurement(seconds=seconds, peak=(torch.cuda.max_memory_allocated() - before) / MIB)


# -- the table -----------------------------------------------------------------------------------------------


def added_operations(name: str, grid: tuple[int, int, int]) -> float | None:
    """Operations of the projector and of the relation, forward and backward; None if there is no matrix
    product.
    """
    objective = objective_of(name)
    if not objective.blocks:
        return None
    target, frames = teacher_grid(grid), grid[0] - 1
    compared = target
    if name == "pda":
        frames = max(2, frames - SEEN)
        target, compared = (frames, *target[1:]), (frames - 1, *target[1:])
    projector = objective.projector.to("meta")
    tokens = torch.empty(1, frames * math.prod(grid[1:]), token_width(), device="meta")
    with torch.no_grad():
        counted = 3 * operations(lambda: projector(tokens, (frames, *grid[1:]), target))
    if name == PEER:  # both relations, and the student's backward through both factors
        return counted + 4 * 2 * math.prod(target) ** 2 * TEACHER_CHANNELS
    kernel = KERNEL_OF.get("soft_trd" if name == "pda" else name)
    return counted + (flops(kernel, list(compared), TEACHER_CHANNELS) if kernel else 0.0)


def row(name: str, found: Measurement, plain: Measurement, share: float | None) -> str:
    """One line of the table."""
    if found.note:
        return f"| {name} | {found.note} | | | | |"
    time, memory = 1 + found.seconds / plain.seconds, 1 + found.peak / plain.peak
    counted = "-" if share is None else f"{1 + share:.4f}"
    return (
        f"| {name} | {found.seconds:.3g} s | {time:.4f} | {counted} | {found.peak:.0f} MiB | {memory:.3f} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grid", type=int, nargs=3, default=GRID, metavar=("F", "H", "W"), help="tokens of the clip"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--repeat", type=int, default=0, help="timed calls after the first; 0 times the first"
    )
    parser.add_argument(
        "--only", nargs="+", choices=KERNELS[0].variants, default=KERNELS[0].variants, metavar="OBJECTIVE"
    )
    args = parser.parse_args()
    grid: tuple[int, int, int] = tuple(args.grid)
    torch.set_num_threads(1)
    on_gpu = args.device == "cuda"
    plain = plain_whole(grid) if on_gpu else plain_by_parts(grid)
    model = resized(grid)
    total = training_operations(build(model), model.latent)
    how = (
        "run whole, blocks checkpointed"
        if on_gpu
        else "put together from one block's measurements, not run whole"
    )
    print(machine(args.device, 1))
    sizes = ["x".join(map(str, shape)) for shape in (grid, teacher_grid(grid))]
    print(f"tokens {sizes[0]} = {math.prod(grid)}, teacher's {sizes[1]}.")
    found = f"{plain.seconds:.3g} s, {total:.2e} operations, {plain.peak:.0f} MiB over the weights"
    print(f"Plain step, {how}: {found}.\n")
    print("| objective | adds | time, with / without | by operations | memory of its own | memory, at most |")
    print("|---|---|---|---|---|---|")
    options: dict[str, Any] = {"device": args.device, "threads": 1, "repeat": 3 if on_gpu else args.repeat}
    for name in args.only:
        found = measure(
            MODULE,
            "objective",
            name,
            {"grid": list(grid)},
            clock="wall" if on_gpu else "processor",
            **options,
        )
        counted = added_operations(name, grid)
        print(row(name, found, plain, None if counted is None else counted / total), flush=True)


if __name__ == "__main__":
    main()
