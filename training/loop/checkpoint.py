"""Checkpoints of a run: everything that is trained, its average, the optimiser, and how far the run is. All
or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...methods.weights import WeightsError, WeightsInfo, load_weights, write_tensors
from ..console import TrainingError, remove_leftovers, saving
from ..renamed import current_names
from . import processes
from .task import Run

KIND = "training_checkpoint"
CHECKPOINT, LOG, CURVES, SHARDS = "checkpoint.safetensors", "log.csv", "curves.png", "deepspeed"
"""Files, and DeepSpeed's folder, in a run's folder."""
MAY_CHANGE = (
    "steps", "minutes", "save_every", "validate_every", "validation_clips", "keep_every", "every", "device",
    "batch", "accumulate", "read_ahead", "gradient_norms", "tensorboard", "log_with",
)  # fmt: skip
"""Settings that a resumed run may have changed. The clips per step (batch x accumulate x processes) may
not."""


@dataclass(kw_only=True)
class Saved:
    """A checkpoint that belongs to the run."""

    path: Path
    states: dict[str, dict[str, Tensor]]
    """By name: model, average, best, task, optimizer."""
    progress: dict[str, Any]
    groups: list[dict[str, Any]]
    """The optimiser's settings."""


def save_state(
    run: Run,
    states: Mapping[str, Mapping[str, Tensor]],
    optimizer: Any,
    progress: Mapping[str, Any],
    *,
    sharded: bool,
    safe: str,
) -> None:
    """Writes the checkpoint into the run's folder; an older one stays whole until the new one is.

    optimizer: None where it has no state yet; `sharded`: DeepSpeed keeps its state. safe: what an error
    leaves intact, in words. Every process must call it. Raises TrainingError where a file cannot be written.
    """
    accelerator, step, out = run.accelerator, progress["step"], Path(run.out)
    states, groups = dict(states), []
    if optimizer is not None and sharded:
        with saving(SHARDS, safe):
            processes.save_shards(accelerator, out / SHARDS, step)
    elif optimizer is not None:
        state = optimizer.state_dict()
        groups = [plain_group(group) for group in state["param_groups"]]
        states["optimizer"] = optimizer_tensors(state["state"])
    tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
    if any(hasattr(value, "full_tensor") for value in tensors.values()):
        tensors = gathered(states, accelerator.is_main_process)
    progress = {**progress, "data": run.task.fingerprint(), "clips_per_step": clips_per_step(run)}
    progress["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    progress["shards"] = None if optimizer is None else shards(run, sharded)
    recipe = {"progress": progress, "groups": groups, "trainer": settings(run)}
    info = WeightsInfo(
        kind=KIND, latent_space=run.task.latent_space, config=dict(run.task.about), recipe=recipe
    )
    if accelerator.is_main_process:
        with saving(CHECKPOINT, safe):
            write_tensors(out / CHECKPOINT, tensors, info)
            if run.config.keep_every and step % run.config.keep_every == 0:
                write_tensors(out / f"checkpoint-{step:06}.safetensors", tensors, info)
        processes.drop_shards(out / SHARDS, keep=step if sharded and optimizer is not None else None)
    accelerator.wait_for_everyone()


def read_state(run: Run, sharded: bool) -> Saved | None:
    """The run's checkpoint; None where there is none.

    Raises TrainingError where it is damaged or was made with other settings, data, or kind of launch.
    """
    path = Path(run.out) / CHECKPOINT
    if run.accelerator.is_main_process:
        remove_leftovers(path.parent, age=0)
    if not path.is_file():
        return None
    try:
        tensors, info = load_weights(path, KIND)
    except WeightsError as error:
        raise TrainingError(
            f"{error} Delete it to start again, or put an older checkpoint in its place."
        ) from error
    progress = info.recipe["progress"]
    if "phase" not in progress:
        raise TrainingError(
            f"{path} was written by an older version, whose runs cannot be continued: use another folder."
        )
    check_same_run(run, info, progress)
    if progress["shards"] is not None and progress["shards"] != shards(run, sharded):
        found, here = optimiser_in(progress["shards"]), optimiser_in(shards(run, sharded))
        raise TrainingError(
            f"{run.out} holds {found} and this launch has {here}: launch it as before, or use another folder."
        )
    states: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("model", "average", "best", "task", "optimizer")
    }
    for key, value in tensors.items():
        name, rest = key.split("/", 1)
        states[name][rest] = value
    return Saved(path=path, states=states, progress=progress, groups=info.recipe["groups"])


def settings(run: Run) -> dict[str, Any]:
    """Settings as the checkpoint stores them."""
    return dict(run.settings) if run.settings is not None else asdict(run.config)


def kept_state(tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> tuple[str, int]:
    """(name of the state that `Loop.kept` is in a checkpoint's tensors, step of it): the best weights, the
    average or the last ones."""
    there = {key.partition("/")[0] for key in tensors}
    name = next((name for name in ("best", "average") if name in there), "model")
    return name, progress["best"]["step"] if name == "best" else progress["step"]


def shards(run: Run, sharded: bool) -> int:
    """Number of shards in which DeepSpeed keeps the optimiser's state; 0 without it."""
    return run.accelerator.num_processes if sharded else 0


def optimiser_in(count: int) -> str:
    """Describes how the optimiser's state is stored."""
    return (
        f"an optimiser in {count} DeepSpeed shard{'s' * (count > 1)}"
        if count
        else "an optimiser in one piece"
    )


def check_same_run(run: Run, info: WeightsInfo, progress: Mapping[str, Any]) -> None:
    """Raises TrainingError if the checkpoint belongs to a different run."""
    free = (*MAY_CHANGE, *run.task.may_change)
    new = settings(run)
    old = current_names(info.recipe["trainer"], new)
    changed = differing(old, {key: new.get(key) for key in old}, ignore=free)
    changed = ", ".join(
        filter(None, [changed, differing(flat(info.config), flat(run.task.about), ignore=free)])
    )
    if changed:
        raise TrainingError(
            f"{run.out} holds a run with other settings ({changed}): give those again, or use another folder."
        )
    if progress["clips_per_step"] != clips_per_step(run):
        raise TrainingError(
            f"{run.out} holds a run with {progress['clips_per_step']} clips a step, this one has "
            f"{clips_per_step(run)}; "
            "change batch, accumulate or the number of processes."
        )
    if progress["data"] != run.task.fingerprint():
        raise TrainingError(f"the data is not what the run in {run.out} began with; use another folder.")


def clips_per_step(run: Run) -> int:
    """Clips that one optimiser step sees."""
    several = 1 if run.task.whole_batches else run.accelerator.num_processes
    return run.config.batch * run.config.accumulate * several


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, "tune.rank" and the like."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def gathered(states: Mapping[str, Mapping[str, Any]], main: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, named "state/key", on the main process; other processes only take part where
    there are shards."""
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
    """Copies values into targets of the same names. Raises TrainingError where names or shapes differ."""
    if set(targets) != set(values):
        odd = sorted(set(targets) ^ set(values))[0]
        raise TrainingError(f"{path} does not fit this run: {odd!r} is only in one of them.")
    for name, target in targets.items():
        if values[name].shape != target.shape:
            shapes = f"{tuple(values[name].shape)}, here it is {tuple(target.shape)}"
            raise TrainingError(f"{path} does not fit this run: {name!r} is {shapes}.")
    for name, target in targets.items():
        target.copy_(like(values[name], target))


def plain_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's settings as a file holds them: torchao keeps the rate in a tensor."""
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}


def optimizer_tensors(state: Mapping[int, Mapping[str, Any]]) -> dict[str, Tensor]:
    """An optimiser's state as tensors named "parameter/key", and "parameter/key/part" where one is made of
    several, as torchao's moments of 8 bits are."""
    found: dict[str, Tensor] = {}
    for index, values in state.items():
        for key, value in values.items():
            if is_traceable_wrapper_subclass(value) and not hasattr(value, "full_tensor"):
                parts = value.__tensor_flatten__()[0]
                found |= {f"{index}/{key}/{part}": getattr(value, part) for part in parts}
            elif value is not None:
                found[f"{index}/{key}"] = torch.as_tensor(value)
    return found


def fill_in_place(optimizer: Any, values: Mapping[str, Tensor]) -> None:
    """Loads a state with tensors made of several: a step of nothing, at rate 0, makes them, and each part is
    filled."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    for value in parameters:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    optimizer.zero_grad()
    for key, value in values.items():
        index, name, *part = key.split("/")
        target = optimizer.state[parameters[int(index)]][name]
        (getattr(target, part[0]) if part else target).copy_(value)


def fill_optimizer(optimizer: Any, values: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Loads an optimiser's state, saved by parameter number."""
    if any(key.count("/") > 1 for key in values):
        fill_in_place(optimizer, values)
        return
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in values.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = (
            value if name == "step" else like(value, parameters[int(index)])
        )
    for group in groups:
        group |= {
            key: tuple(value) for key, value in group.items() if isinstance(value, list) and key != "params"
        }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def differing(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> str:
    """The settings in which two configs differ, as "width 64 -> 128, seed 0 -> 1"; "" where they agree."""
    keys = [key for key in {**old, **new} if key not in ignore]
    pairs = [(key, old.get(key), new.get(key)) for key in keys]
    return ", ".join(f"{key} {a} -> {b}" for key, a, b in pairs if json.dumps(a) != json.dumps(b))
