"""`latent-physics pila`: trains the PILA adapter on a frozen backbone in the stages of arXiv 2606.04737,
section B.3.

    python training pila --recipe toy --toy-clips 512 --out runs/pila          # the toy world, two cores
    python training pila --recipe wan --cache CLIPS --out runs/pila_wan         # Wan 2.1 1.3B

Stage A fits the velocity slot to optical flow on ever noisier estimates, stage B recovers the fields that no
data shows, stage C trains everything with the flow-matching loss and the routed residuals. A stopped run
is resumed inside a stage and between stages; every random draw is a function of (seed, stage, step).
Several processes share the clips of a step:

    accelerate launch --config_file training/recipes/ddp.yaml training pila --recipe wan --cache CLIPS --out
    runs/pila_wan

Each takes its own stretch of what one process with all the clips would draw, so the number of processes
changes the speed and not the result (up to rounding). With zero2.yaml instead, DeepSpeed keeps the
optimiser's state in shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...methods.pila.config import GATE_FLOORS, PilaConfig
from ...methods.weights import WeightsError
from ...toyworld.data import world_named
from ..backbones.header import check_expert
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.flow import FlowSource
from ..loop.checkpoint import CHECKPOINT, CURVES, LOG, SHARDS
from ..recipes import recipe_name
from ..study.ablations import ablation
from ..tasks.pila.columns import EXPORT, RESIDUALS
from ..tasks.pila.data import PilaClips, cached_clips, toy_clips
from ..tasks.pila.settings import RECIPES, PilaTraining, check
from ..tasks.pila.task import PilaRun, findings, make_accelerator, train
from . import cli

PAPER_CLIPS = 240_000
"""Clips that the paper's coupling stage shows: 3 epochs of the 80,000 clips of WISA-80K."""


@dataclass(kw_only=True)
class PilaCommand:
    """Train a PILA adapter on a frozen backbone."""

    out: Path
    """Folder of this run: checkpoint, log.csv, curves, pila_adapter.safetensors. A run found there is
    resumed."""
    cache: Path | None = None
    """Folder that `latent-physics cache --tokens` filled."""
    toy_clips: int = 0
    """Number of clips to draw from the toy worlds, instead of a cache."""
    toy_worlds: list[str] = field(default_factory=list)
    """Worlds that those drawn clips are of, by name; left out, all eight."""
    recipe: Literal["wan", "toy"] = "wan"
    """Defaults of the settings below. wan: the paper's numbers. toy: a small adapter, for two cores."""
    backbone: Literal["wan", "toy"] | None = None
    """Whose frozen transformer to correct; left out, the recipe's."""
    source: str | None = None
    """Diffusers folder or hub id of the backbone; left out, the family's smallest model."""
    dit: Path | None = None
    """A transformer file as ComfyUI's models/diffusion_models holds it, instead of `source`."""
    vae: Path | None = None
    """A VAE file, needed beside `dit` where flow is "pixels" or "raft"."""
    gate: Literal["quadratic", "linear"] | None = None
    """Course of the correction over the noise; left out, the recipe's. "quadratic" with floor 0.05 is the
    paper's and nearly nothing above sigma 0.8, where all but the last step of a 4-step graph and all of Wan
    2.2's high-noise model lie; "linear" with floor 0.3 is what the authors' Wan scripts pass, and acts there
    too."""
    gate_floor: float | None = None
    """Share of the correction applied at pure noise; left out, 0.05 of the quadratic and 0.3 of the linear
    gate."""
    decoder_blocks: int | None = None
    """Residual blocks of the decoder; left out, the recipe's."""
    decoder_sees_feature: bool | None = None
    """Also feed the encoder's feature to the decoder, beside the bank, as the authors' code does; left out,
    the recipe's."""
    flow: FlowSource | None = None
    """Source of the velocity target: "raft" (on decoded frames; torchvision fetches its weights once, 21 MB),
    "pixels" (Lucas-Kanade on decoded frames), "latent" (Lucas-Kanade on the latent: no VAE needed, but its
    direction agrees little with RAFT's, cosine 0.29). Left out, raft for Wan and latent for the toy world,
    whose drawn clips use their rendered frames."""
    raft: str = "raft_large"
    """RAFT's name or a safetensors file."""
    labels: Path | None = None
    """JSON lines of {"prompt": ..., "labels": [...]}; captions that are not in it are labelled by the offline
    rules."""
    ablation: str = "full"
    """One row of the ablation tables: full, plain_adapter, no_afe, no_routing, no_pde, proxy_only, ..."""
    films: int = 2
    """Held-out clips to film at the end, without and with the correction side by side; 0 for none. They need
    the VAE."""
    export: Path | None = None
    """Also write the adapter here, for example ComfyUI/models/latent_physics/my_pila.safetensors."""
    fresh: bool = False
    """Start over: delete the run in `out` first."""
    config: PilaTraining = field(default_factory=PilaTraining)


def main(argv: list[str]) -> int:
    """The command. Returns the exit status: 0 where the run is finished, 1 on an error, 130 where stopped by
    the user."""
    from ...encoders import TeacherError

    return cli.run_command(lambda: _command(argv), WeightsError, TeacherError, ValueError)


def _command(argv: list[str]) -> int:
    command = _parse(argv)
    method, adapter = ablation(command.ablation), _adapter(command)
    check(command.config)
    if (command.cache is None) == (command.toy_clips == 0):
        raise TrainingError(
            "give either --cache (a folder of cached clips) or --toy-clips (how many to draw), not both."
        )
    if command.toy_worlds and not command.toy_clips:
        raise TrainingError(
            f"--toy-worlds is {' '.join(command.toy_worlds)}; it chooses among drawn clips: add --toy-clips "
            f"(how many to draw), or leave it out."
        )
    for name in command.toy_worlds:
        world_named(name)
    if command.dit is None and (command.backbone or command.recipe) == "wan":
        check_expert(command.source)
    accelerator = make_accelerator(command.config)
    if command.fresh and accelerator.is_main_process:
        for name in (CHECKPOINT, EXPORT, LOG, CURVES, RESIDUALS):
            (command.out / name).unlink(missing_ok=True)
        shutil.rmtree(command.out / SHARDS, ignore_errors=True)
    command.config.device = str(accelerator.device)
    backbone = _backbone(command)
    with accelerator.main_process_first():  # the others read what it made
        clips = _clips(command, backbone)
    run = PilaRun(backbone, clips, command.config, adapter, command.out, accelerator, method)
    if command.recipe == "wan":
        accelerator.print(budget(run))
    with StopRequest() as stop:
        train(run, stop)
    if command.export and accelerator.is_main_process:
        run.export(command.export)
    if run.finished:
        _film(run, command)
        removed = (
            ""
            if run.val_gain is None
            else f" It removes {run.val_gain:.2%} of the frozen model's error on held-out clips."
        )
        accelerator.print(
            f"Adapter: "
            f"{command.export or command.out / EXPORT}.{removed}{_findings(findings(run.loop.found))}"
        )
        return 0
    accelerator.print(
        f"Stopped at step {run.total_steps} of {run.planned_steps}; run the same command to resume."
    )
    return 130


def budget(run: PilaRun) -> str:
    """Clips of the run's coupling stage, as a share of the paper's."""
    shown = run.task.stages[-1].steps * run.task.config.batch * run.accelerator.num_processes
    return (
        f"Stage C shows {shown:,} clips ({len(run.task.clips):,} different ones), {shown / PAPER_CLIPS:.1%} "
        f"of the paper's "
        f"{PAPER_CLIPS:,} (3 epochs of WISA-80K)."
    )


def _findings(found: Mapping[str, list[str]]) -> str:
    """Findings of the last validation, as sentences."""
    words = {
        "dead_slots": "Constant fields, whose laws judge nothing",
        "unused_experts": "Experts that no held-out clip used",
    }
    return "".join(f" {words[name]}: {', '.join(names)}." for name, names in found.items() if names)


def _film(run: PilaRun, command: PilaCommand) -> None:
    """Films of the first held-out clips. Raises OSError."""
    count, (backbone,) = min(command.films, run.task.held), run.task.module.frozen
    if count and run.accelerator.is_main_process and backbone.vae is not None:
        from ..tasks.pila.films import write_films

        write_films(
            run.adapter.eval(), backbone, run.task.clips.batch(range(count)), command.out, run.total_steps
        )


def _parse(argv: list[str]) -> PilaCommand:
    """Reads the command line into the recipe's settings."""
    config = RECIPES.get(recipe_name(argv) or "", RECIPES["wan"])[0]
    return cli.parse(
        PilaCommand,
        argv,
        prog="latent-physics pila",
        description="Train a PILA adapter on a frozen backbone.",
        defaults={"config": replace(config)},
    )


def _adapter(command: PilaCommand) -> PilaConfig:
    """The recipe's adapter with what the command line changes. Raises ValueError for values out of range."""
    given = {
        name: getattr(command, name)
        for name in ("gate", "gate_floor", "decoder_blocks", "decoder_sees_feature")
    }
    if command.gate is not None and command.gate_floor is None:
        given["gate_floor"] = GATE_FLOORS[command.gate]
    return replace(
        RECIPES[command.recipe][1], **{name: value for name, value in given.items() if value is not None}
    )


def _backbone(command: PilaCommand) -> Any:
    """The frozen backbone with the parts that this run needs."""
    from ..backbones.load import load_backbone

    family = command.backbone or command.recipe
    decodes = command.cache is not None and _flow(command) != "latent"
    parts = ["dit", *(["vae", "text"] if command.toy_clips else []), *(["vae"] if decodes else [])]
    source: Any = command.source
    if command.dit is not None:
        source = {"dit": command.dit} | ({"vae": command.vae} if command.vae else {})
    dtype = torch.bfloat16 if command.config.bf16 else torch.float32
    return load_backbone(family, source, parts=parts, device=command.config.device, dtype=dtype)


def _flow(command: PilaCommand) -> FlowSource:
    """The source of the velocity target."""
    return command.flow or ("latent" if (command.backbone or command.recipe) == "toy" else "raft")


def _clips(command: PilaCommand, backbone: Any) -> PilaClips:
    if command.toy_clips:
        if backbone.latent_space != "toy":
            raise TrainingError("--toy-clips needs the toy backbone: add --recipe toy.")
        progress = ProgressLine("toy clips")
        clips = toy_clips(
            command.toy_clips,
            command.config.seed,
            command.out / "toy_clips",
            backbone,
            progress,
            command.toy_worlds,
        )
        progress.close()
        backbone.drop("text", *([] if command.films else ["vae"]))
        return clips
    raft, flow = None, _flow(command)
    if flow == "raft":
        from ...encoders import load_raft

        raft = load_raft(command.raft, command.config.device)
    return cached_clips(command.cache, command.out / "flow", flow, backbone, command.labels, raft)
