"""What a plan takes on this machine, counted before it runs: what its folder holds already, and the core
hours of the rest.

The plan gives amounts (steps, clips, samplings) by unit of work; each unit that is asked for is timed, by a
few of it in a folder that is thrown away. The plan's own folder is looked at and not written to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..loop.checkpoint import LOG
from ..loop.log import read_log
from ..objectives import parse
from ..recipes import load_recipe, recipe_in, recipe_name
from ..tasks import predictor
from ..tasks.grpo.settings import GrpoConfig
from ..tasks.motion_head import MotionHeadConfig
from ..tasks.pila import settings as pila
from ..tasks.pila.stages import stages_of
from . import corrections
from .ablations import ablation
from .files import FilePlan
from .frames import ROWS
from .kept import exported
from .pace import BATCH, Paces
from .plan import BASE, PLAIN, SAMPLED, ArmPlan, Regime, alignments, kind_of, numbered, objectives_of
from .study import Study


@dataclass(kw_only=True)
class Part:
    """One row of the table: some work of one kind."""

    name: str
    made: int = 0
    """Pieces that are there."""
    left: int = 0
    """Pieces that are not."""
    work: Counter[str] = field(default_factory=Counter)
    """Amounts by unit of what is left: "step KIND", "refit KIND", "sample", "sample CORRECTION" (sampler
    steps of a clip), "score", "look", "clip", "teacher"."""

    def add(self, there: bool, work: Mapping[str, float]) -> None:
        """One more piece."""
        self.made, self.left = self.made + there, self.left + (not there)
        if not there:
            self.work.update(work)

    @property
    def steps(self) -> float:
        """Training steps that are left."""
        return sum(amount for unit, amount in self.work.items() if unit.startswith("step "))

    def seconds(self, pace: Mapping[str, float]) -> float:
        """Core seconds of what is left; `pace`: those of each unit."""
        return sum(amount * pace[unit] for unit, amount in self.work.items() if amount)


# --- counting -----------------------------------------------------------------------------------------------


def parts_of(study: Study) -> list[Part]:
    """The plan's work in the order in which it is done, less that of arms that are known to be left out."""
    return [*data_parts(study), *file_parts(study), sampled_part(study), *regime_parts(study)]


def data_parts(study: Study) -> Iterator[Part]:
    """Drawn clips, and the teachers' features of them; first stages."""
    clips, heads = Part(name="clips drawn to train on"), Part(name="first stages (MoAlign)")
    needs: dict[Path, tuple[int, set[str]]] = {}
    for regime in study.plan.regimes:
        for seed, arm in study.jobs(regime):
            teachers = {need.key for need in parse.needed_teachers(alignments(arm))}
            place = study.data_folder(regime, arm, seed)
            needs[place] = (regime.clips, needs.get(place, (0, set()))[1] | teachers)
    for file, _ in study.files.jobs(study.comparable()):
        if file.reads_clips:
            needs[study.right_folder(file.clips)] = (file.clips, set())
    for place, (count, teachers) in needs.items():
        there = len(list(place.glob("toy-*.safetensors"))) >= count
        clips.add(there, {"clip": count, "teacher": count * len(teachers)})
    for arm in study.comparable():
        for seed in study.plan.seeds if arm.stage1 else []:
            steps = load_recipe(arm.stage1, MotionHeadConfig, "motion-head").trainer.steps
            heads.add(study.head(arm, seed).is_file(), {f"refit {kind_of(alignments(arm))}": steps})
    yield from (part for part in (clips, heads) if part.made + part.left)


def file_parts(study: Study) -> Iterator[Part]:
    """Files that arms need, by the command that makes them."""
    parts: dict[str, Part] = {}
    for file, seed in study.files.jobs(study.comparable()):
        part = parts.setdefault(file.command, Part(name=f"files by {file.command}"))
        part.add(study.files.path(file, seed).is_file(), work_of_file(file))
    yield from parts.values()


def work_of_file(file: FilePlan) -> dict[str, float]:
    """Amounts by unit of one file's command; all steps of PILA count as its coupling stage's."""
    words, recipe = file.arguments, recipe_name(file.arguments)

    def said(flag: str, default: Any) -> Any:
        return type(default)(words[words.index(flag) + 1]) if flag in words else default

    if file.command == "predictor":
        return {"step predictor": said("--steps", predictor.RECIPES[recipe or "full"].steps)}
    if file.command == "pila":
        settings = pila.RECIPES[recipe or "wan"][0]
        names = ("observable_steps", "recovery_steps", "coupling_steps")
        steps = {name: said(f"--{name.replace('_', '-')}", getattr(settings, name)) for name in names}
        stages = stages_of(replace(settings, **steps), ablation(said("--ablation", "full")))
        step = f"step pila {said('--batch', settings.batch)}"
        return {"clip": said("--toy-clips", 0), step: sum(stage.steps for stage in stages)}
    config = recipe_in(words, GrpoConfig, "grpo") or GrpoConfig()
    return work_of_grpo(config, said("--steps", config.trainer.steps))


def work_of_grpo(config: GrpoConfig, steps: int) -> dict[str, float]:
    """Amounts by unit of a reinforcement: clips sampled to learn from and to be judged, and steps on them,
    counted as a plain training's with a second pass for the guidance."""
    clips = config.unique_sample_num_per_epoch * config.group_size / config.gradient_step_per_epoch
    judged = config.eval_count * (1 + steps // config.trainer.validate_every)
    sampled = steps * clips * config.num_inference_steps + judged * config.eval_num_inference_steps
    updates = steps * clips * config.turns * 2 / BATCH
    return {"sample": sampled, "score": steps * clips + judged, f"step {PLAIN}": updates}


def sampled_part(study: Study) -> Part:
    """Arms that are not trained, and the rows that frame the tables."""
    part, plan = Part(name=f"{SAMPLED}, without a training"), study.plan
    for name in ROWS:
        part.add((study.out / SAMPLED / name / "clips.json").is_file(), {"score": plan.prompts})
    for arm in [BASE, *(arm for arm in study.comparable() if arm.recipe is None)]:
        for seed in plan.seeds if study.files.by_seed(arm) else plan.seeds[:1]:
            work = Counter(clips_work(study, arm))
            if not (arm.cfg or arm.worlds or corrections.edits_noise(arm.corrections)):
                work["look"] += plan.readout_clips
            part.add((study.folder(SAMPLED, arm, seed) / "clips.json").is_file(), work)
    return part


def clips_work(study: Study, arm: ArmPlan) -> dict[str, float]:
    """Amounts by unit of an arm's sampled clips."""
    steps = study.plan.prompts * study.plan.sampling_steps
    kinds = {f"sample {text.split()[0]}": steps for text in arm.corrections}
    return {"sample": steps, "score": study.plan.prompts} | kinds


def regime_parts(study: Study) -> Iterator[Part]:
    """Trainings and readouts of each regime."""
    for regime in study.plan.regimes:
        trainings, readouts = Part(name=f"{regime.name}: trainings"), Part(name=f"{regime.name}: readouts")
        for seed, arm in study.jobs(regime):
            folder = study.folder(regime.name, arm, seed)
            done = 0 if exported(folder) else last_step(folder)
            kind = kind_of(objectives_of(arm))
            trainings.add(exported(folder) is not None, {f"step {kind}": regime.steps - done})
            for name, work in readouts_of(study, regime, arm):
                readouts.add((folder / f"{name}.json").is_file(), work)
        yield from (part for part in (trainings, readouts) if part.made + part.left)


def readouts_of(study: Study, regime: Regime, arm: ArmPlan) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Name and amounts by unit of what is read of a training."""
    looks = {"look": study.plan.readout_clips}
    if "alignment" in regime.readouts:
        for asked in study.asked_of(regime, arm):
            for number, text in enumerate(alignments(asked)):
                work = looks | {f"refit {kind_of([text])}": study.plan.refit_steps}
                yield f"alignment {numbered(asked.name, number)}", work
    if "scene" in regime.readouts:
        yield "scene", looks
    if "clips" in regime.readouts:
        yield "clips", clips_work(study, arm)


def last_step(folder: Path) -> int:
    """Steps that a stopped training has behind it."""
    rows = read_log(folder / LOG)
    return int(rows[-1]["step"]) if rows else 0


# --- words --------------------------------------------------------------------------------------------------


def describe(study: Study) -> str:
    """Markdown: what is there, what is not, and what that takes."""
    torch.set_num_threads(study.threads or 1)
    read = study.known_gate()
    parts = parts_of(study)
    with TemporaryDirectory() as folder:
        paces = Paces(study, Path(folder))
        seconds = [part.seconds(paces) for part in parts]
    total = Part(name="**all**", made=sum(p.made for p in parts), left=sum(p.left for p in parts),
                 work=sum((p.work for p in parts), Counter()))  # fmt: skip
    lines = [
        "| part | there | to make | training steps | clips to sample and score | core hours |",
        "|---" * 6 + "|",
    ]
    for part, spent in zip([*parts, total], [*seconds, sum(seconds)]):
        cells = (part.name, part.made, part.left, f"{part.steps:,.0f}", f"{part.work['score']:,.0f}",
                 f"{spent / 3600:.2f}")  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    left_out = [f"Not counted: {arm}: {why}." for arm, why in study.results.left_out.items()]
    unread = [] if read else ["The gate has not been read; arms that it closes fall away."]
    return "\n".join([*lines, "", summary(sum(seconds) / 3600, paces), *left_out, *unread])


def summary(hours: float, paces: Mapping[str, float]) -> str:
    """The sum in words, and what it was counted with."""
    if not paces:
        return "Nothing is left to make."
    timed = ", ".join(f"{unit} {paces[unit]:.3g}" for unit in sorted(paces))
    return (
        f"About {hours:.1f} core hours: {hours / 2:.1f} hours for two processes with --threads 1. Core "
        f"seconds of each unit, timed here: {timed}."
    )
