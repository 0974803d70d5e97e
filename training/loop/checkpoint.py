"""Checkpoints of a run: everything that is trained, its average, the optimiser, and how far the run is. All or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...methods.weights import WeightsError, WeightsInfo, load_weights, write_tensors
from ..console import RunError, saving
from . import processes
from .optim import trainable

if TYPE_CHECKING:
    from .task import Run

KIND = "training_checkpoint"
MAY_CHANGE = ("steps", "save_every", "validate_every", "validation_clips", "keep_every", "tensorboard", "batch", "accumulate")
"""Settings that a resumed run may have changed. The clips per step (batch x accumulate x processes) may not."""


def save_state(run: Run, module: nn.Module, optimizer: Any, average: Mapping[str, Tensor], step: int) -> None:
    """Writes `checkpoint.safetensors` in the run's folder; an older one stays whole until the new one is.

    Every process must call it: sharded tensors are gathered. Raises RunError where the file cannot be written.
    """
    accelerator = run.accelerator
    deepspeed, shards = processes.deepspeed(accelerator), run.out / "deepspeed"
    states: dict[str, Mapping[str, Any]] = {"model": trainable(accelerator.unwrap_model(module)), "average": average}
    states["task"] = run.task.state()
    groups: list[dict[str, Any]] = []
    if deepspeed:
        processes.save_shards(accelerator, shards, step)
    else:
        state = optimizer.state_dict()
        groups = state["param_groups"]
        states["optimizer"] = {
            f"{index}/{key}": value for index, values in state["state"].items() for key, value in values.items()
        }
    tensors = gathered(states, accelerator.is_main_process)
    progress = {
        "step": step,
        "data": run.task.fingerprint(),
        "clips_per_step": clips_per_step(run),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
    }
    recipe = {"progress": progress, "groups": groups, "trainer": asdict(run.config)}
    info = WeightsInfo(kind=KIND, latent_space=run.task.latent_space, config=run.task.about, recipe=recipe)
    if accelerator.is_main_process:
        path = run.out / "checkpoint.safetensors"
        with saving(path.name, "the checkpoint before it is intact"):
            write_tensors(path, tensors, info)
            if run.config.keep_every and step % run.config.keep_every == 0:
                write_tensors(run.out / f"checkpoint-{step:06}.safetensors", tensors, info)
        if deepspeed:
            processes.drop_shards(shards, keep=step)
    accelerator.wait_for_everyone()


def load_state(run: Run, module: nn.Module, optimizer: Any, average: Mapping[str, Tensor]) -> int:
    """Brings everything to the state of the run's checkpoint; returns its step, 0 where there is none.

    Raises RunError where the checkpoint is damaged or was made with other settings or data.
    """
    path = run.out / "checkpoint.safetensors"
    if run.accelerator.is_main_process:
        for left in run.out.glob(".*.tmp"):  # of a write that a kill interrupted
            left.unlink(missing_ok=True)
    if not path.is_file():
        return 0
    try:
        tensors, info = load_weights(path, KIND)
    except WeightsError as error:
        raise RunError(f"{error} Delete it to start again, or put an older checkpoint in its place.") from error
    progress = info.recipe["progress"]
    check_same_run(run, info, progress)
    states: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "task": {}, "optimizer": {}}
    for key, value in tensors.items():
        name, rest = key.split("/", 1)
        states[name][rest] = value
    fill(trainable(run.accelerator.unwrap_model(module)), states["model"], path)
    fill(average, states["average"], path)
    fill(run.task.state(), states["task"], path)
    if processes.deepspeed(run.accelerator):
        processes.load_shards(run.accelerator, run.out / "deepspeed", progress["step"])
    else:
        _fill_optimizer(optimizer, states["optimizer"], info.recipe["groups"])
    if progress["scaler"] is not None and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(progress["scaler"])
    return progress["step"]


def check_same_run(run: Run, info: WeightsInfo, progress: Mapping[str, Any]) -> None:
    """Raises RunError where going on would not be going on with the same run."""
    changed = differing(info.recipe["trainer"], asdict(run.config), ignore=MAY_CHANGE)
    changed = ", ".join(filter(None, [changed, differing(flat(info.config), flat(run.task.about))]))
    if changed:
        raise RunError(f"{run.out} holds a run with other settings ({changed}); give those, or another --out.")
    if progress["clips_per_step"] != clips_per_step(run):
        raise RunError(
            f"{run.out} holds a run with {progress['clips_per_step']} clips a step, this one has {clips_per_step(run)}; "
            "change batch, accumulate or the number of processes."
        )
    if progress["data"] != run.task.fingerprint():
        raise RunError(f"the data is not what the run in {run.out} began with; use another --out.")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, "tune.rank" and the like."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def clips_per_step(run: Run) -> int:
    """Clips that one optimiser step sees."""
    return run.config.batch * run.config.accumulate * run.accelerator.num_processes


def gathered(states: Mapping[str, Mapping[str, Any]], main: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, named "state/key", on the main process; other processes only take part where there are shards."""
    tensors: dict[str, Tensor] = {}
    for name, state in states.items():
        for key, value in state.items():
            if main or hasattr(value, "full_tensor"):
                value = whole(value)
            if main:
                tensors[f"{name}/{key}"] = value
    return tensors


def whole(value: Any) -> Tensor:
    """A tensor on the CPU; the shards of a sharded one are gathered (a collective call)."""
    value = torch.as_tensor(value).detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.cpu().contiguous().clone()


def like(value: Tensor, target: Tensor) -> Tensor:
    """`value` on the target's device and, where the target is sharded, sharded like it."""
    value = value.to(target.device)
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
    """Copies values into targets of the same names. Raises RunError where names or shapes differ."""
    if set(targets) != set(values):
        odd = sorted(set(targets) ^ set(values))[0]
        raise RunError(f"{path} does not fit this run: {odd!r} is only in one of them.")
    for name, target in targets.items():
        if values[name].shape != target.shape:
            shapes = f"{tuple(values[name].shape)}, here it is {tuple(target.shape)}"
            raise RunError(f"{path} does not fit this run: {name!r} is {shapes}.")
    for name, target in targets.items():
        target.copy_(like(values[name], target))


def _fill_optimizer(optimizer: Any, values: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Loads AdamW's moments, saved by parameter number."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in values.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value if name == "step" else like(value, parameters[int(index)])
    for group in groups:
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def differing(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
    """The settings in which two configs differ, as "width 64 -> 128, seed 0 -> 1"; "" where they agree."""
    keys = [key for key in {**old, **new} if key not in ignore]
    pairs = [(key, old.get(key), new.get(key)) for key in keys]
    return ", ".join(f"{key} {a} -> {b}" for key, a, b in pairs if json.dumps(a) != json.dumps(b))
