"""The files of a PILA run: the checkpoint it goes on from, the adapter that ComfyUI loads, the log's columns and the curves."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ....methods.pila import CATEGORIES, save_adapter
from ....methods.pila.bank import SLOTS
from ....methods.pila.losses.objective import TERM_NAMES
from ....methods.pila.losses.recovery import RECOVERY_NAMES
from ....methods.pila.residuals import TERMS
from ...console import RunError, load_checkpoint, save_checkpoint, saving
from ...loop import processes
from ...loop.checkpoint import differing
from ...loop.log import draw_curves
from .losses import ROUTING_COLUMNS, SIGMA_COLUMNS

if TYPE_CHECKING:
    from .task import PilaRun

KIND = "pila_checkpoint"
CHECKPOINT, EXPORT, LOG = "checkpoint.safetensors", "pila_adapter.safetensors", "log.csv"
CURVES, RESIDUALS = "curves.png", "residuals.png"
SHARDS = "deepspeed"
"""Folder of DeepSpeed's checkpoints in a run's folder."""
FREE_TO_CHANGE = ("device", "every", "coupling_steps")
DRAW_SECONDS = 20.0
"""Curves are drawn anew at most so often: there are many, and drawing takes seconds."""

COLUMNS = (
    "stage", "loss", "observable", "flow", "base", "gain", "val_gain", "physics", "samples", "ratio", "mask", "grad_norm",
    "off_label", "recall", "seconds",
    *(f"B {name}" for name in RECOVERY_NAMES),
    *TERM_NAMES,
    *(f"std {name}" for name in SLOTS),
    *ROUTING_COLUMNS,
    *SIGMA_COLUMNS,
)  # fmt: skip
"""gain: 1 - flow / base, the share of the frozen model's error that the correction removes. off_label: routing weight given to
experts without a label. recall: share of the labels whose expert ran. route X: mean routing weight of an expert. X + Y: share of
the clips for which both experts ran. X at sigma S: mean residual of a category by noise level. std X: deviation of a field within
a clip before the experts; constants obey every law, so a fall towards 0 means that the residuals judge nothing any more."""
CURVE_PANELS = {
    "flow target": ("observable",),
    "flow matching": ("flow", "base"),
    "error removed": ("gain", "val_gain"),
    "physics": ("physics",),
    "|g dv| / |v|": ("ratio",),
    "routing": ("off_label", "recall"),
    "variation of the fields": tuple(f"std {name}" for name in SLOTS),
}


class RunFiles:
    """Writes the files of one run, and reads back what it goes on from."""

    def __init__(self, run: PilaRun) -> None:
        self.run = run
        self.saved = 0
        """Step of the last checkpoint; 0 where there is none."""
        self._drawn = 0.0

    def kept(self) -> str:
        """Words for what an error leaves intact."""
        return f"the checkpoint of step {self.saved} is safe" if self.saved else "no checkpoint was written before"

    @property
    def shards(self) -> int:
        """In how many shards DeepSpeed keeps the optimiser's state; 0 without it."""
        return self.run.processes if self.run.sharded else 0

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run goes on; "batch" is that of all processes together."""
        run = self.run
        facts = {"data": run.clips.fingerprint(), "latent_space": run.clips.latent_space}
        facts["batch"] = run.config.batch * run.processes
        return {**asdict(run.config), **asdict(run.adapter_config), "method": run.method.name, **facts}

    def recipe(self) -> dict[str, Any]:
        """How the weights came about, for their metadata."""
        run = self.run
        training = {key: value for key, value in asdict(run.config).items() if key != "device"}
        facts = {"clips": len(run.clips), "steps": run.total_steps, "seconds": round(run.seconds, 1)}
        return {**training, **facts, "method": run.method.name, "val_gain": run.val_gain, **run.findings}

    def save(self) -> None:
        """Checkpoint, adapter and curves, each all or nothing. Every process must call it.

        Raises RunError where the disk is full.
        """
        run, folder = self.run, self.run.folder
        if folder is None:
            return
        # The optimiser is new at the start of a stage: nothing to keep, and any launch may go on from there.
        moments = run.step > 0 or run.finished
        if run.sharded and moments:
            with saving(SHARDS, self.kept()):
                processes.save_shards(run.accelerator, folder / SHARDS, run.total_steps)
        kept, self.saved = self.kept(), run.total_steps
        if not run.main:
            return
        with saving(CHECKPOINT, kept):
            self._checkpoint(folder / CHECKPOINT, moments)
        processes.drop_shards(folder / SHARDS, keep=run.total_steps if run.sharded and moments else None)
        with saving(EXPORT, self.kept()):
            self.export(folder / EXPORT)
            if run.finished or time.monotonic() - self._drawn >= DRAW_SECONDS:
                self._draw(folder)

    def _checkpoint(self, path: Path, moments: bool) -> None:
        """Writes what the run goes on from; `moments`: with the optimiser's state."""
        run = self.run
        progress = {"stage": run.stage, "step": run.step, "seconds": run.seconds, "val_gain": run.val_gain}
        progress["findings"] = run.findings
        progress["shards"] = self.shards if moments else None
        save_checkpoint(
            path,
            kind=KIND,
            latent_space=run.clips.latent_space,
            config=self.settings(),
            progress=progress,
            states={"adapter": run.adapter.state_dict(), "weights": run.weights.state_dict()},
            optimizer=run.optimizer if moments and not run.sharded else None,
        )

    def _draw(self, folder: Path) -> None:
        """Draws the log's curves and the routed residuals."""
        log, steps = self.run.log, self.run.total_steps
        self._drawn = time.monotonic()
        draw_curves(log, folder / CURVES, CURVE_PANELS, f"PILA, {steps} steps")
        panels = {category: [f"{category}/{name}" for name in TERMS[category]] for category in CATEGORIES}
        draw_curves(log, folder / RESIDUALS, panels, "routed residuals (0: the law holds, 1: unrelated)")

    def export(self, path: Path) -> None:
        """Writes the adapter file that ComfyUI loads, in half precision for the toy world. Raises OSError."""
        space = self.run.clips.latent_space
        dtype = torch.float16 if space == "toy" else torch.float32
        save_adapter(path, self.run.adapter, space, self.recipe(), dtype)

    def load(self) -> bool:
        """Brings the run's weights and progress to its checkpoint, if there is one; the stage is still to begin.

        Returns whether the checkpoint has an optimiser's state for that stage (`load_optimizer`). Raises RunError where it is
        that of a run with other settings, or of another kind of launch.
        """
        run, folder = self.run, self.run.folder
        if folder is None or not (folder / CHECKPOINT).exists():
            return False
        states, progress, info = load_checkpoint(folder / CHECKPOINT, kind=KIND)
        changed = differing(info.config, self.settings(), FREE_TO_CHANGE)
        if changed:
            raise RunError(f"{folder} holds a run with other settings ({changed}): use another folder, or --fresh.")
        shards = progress.get("shards", 0)
        if shards is not None and shards != self.shards:
            found, here = optimiser_in(shards), optimiser_in(self.shards)
            raise RunError(f"{folder} holds {found} and this launch has {here}: launch it as before, or use another folder.")
        run.adapter.load_state_dict(states["adapter"])
        run.weights.load_state_dict(states["weights"])
        run.stage, run.step = progress["stage"], progress["step"]
        run.seconds, run.val_gain = progress["seconds"], progress["val_gain"]
        run.findings = progress["findings"]
        if run.finished and run.stages[-1].steps > info.config["coupling_steps"]:
            run.stage, run.step = len(run.stages) - 1, info.config["coupling_steps"]  # a longer coupling stage goes on
        self.saved = run.total_steps
        return not run.finished and shards is not None

    def load_optimizer(self) -> None:
        """Brings the optimiser of the stage that has begun to the checkpoint. Raises RunError where its shards are missing."""
        run, folder = self.run, self.run.folder
        if run.sharded:
            processes.load_shards(run.accelerator, folder / SHARDS, run.total_steps)
        else:
            load_checkpoint(folder / CHECKPOINT, kind=KIND, optimizer=run.optimizer)


def optimiser_in(shards: int) -> str:
    """Words for where an optimiser's state is."""
    return f"an optimiser in {shards} DeepSpeed shard{'s' * (shards > 1)}" if shards else "an optimiser in one piece"
