"""The toy world's study: a plan's arms trained, read and scored, each where its gate is open.

Every model is a folder with its own settings, and every readout a file with what it depends on; what is
there already is never made again, so a study that was stopped anywhere goes on with the same command, and
comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from ...encoders.base import digest_of
from ...toyworld import mixture
from ..backbones import Backbone, load_backbone
from ..console import ProgressLine, StopRequest
from ..data.batches import TrainingClips
from ..objectives import parse
from .corrections import corrections_of, edits_noise, file_of
from .files import FilePlan, PlanFiles, make_file
from .frames import ROWS, frame_of
from .gate import Limits, Reading, read_gate
from .kept import base_file, base_folder, base_wrong, exported, keep, kept, load_trained, load_weights_into
from .plan import (
    BASE,
    SAMPLED,
    STAGE1,
    ArmPlan,
    Plan,
    Regime,
    alignments,
    chosen,
    load_plan,
    numbered,
    objectives_of,
    takes_part,
)
from .probes import tracked_clips
from .readouts import Eyes, Measures, blocks_of, last_loss, read_alignment, read_scene, steps_to
from .results import Results, StudyConfig
from .runs import HEAD, Training, first_stage, make_data, train_arm
from .sampling import SCORES, sampled_clips, scores_of
from .scene import encoded
from .sharing import StopStudy, alone
from .strips import write_strip


class Study:
    """A plan on the base that ships; `go` makes what is missing."""

    def __init__(self, config: StudyConfig, stop: StopRequest, progress: ProgressLine) -> None:
        """Raises TrainingError for a plan that makes no sense, and for an arm that it does not have."""
        self.threads = config.threads
        if config.threads:
            torch.set_num_threads(config.threads)
        self.plan: Plan = load_plan("quick" if config.quick else config.plan)
        self.arms = chosen(self.plan, config.arms)
        self.name = Path(self.plan.recipe).stem.removeprefix("study-")
        self.out = base_folder(config.out / self.name)
        self.files = PlanFiles(self.plan, self.out / "files")
        self.stop, self.progress = stop, progress
        self.results = Results()

    @cached_property
    def backbone(self) -> Backbone:
        """The base, whose transformer's weights are exchanged for those of each model."""
        return load_backbone("toy")

    @cached_property
    def scenes(self) -> tuple[Tensor, list[str], list[str]]:
        """Real clips of all worlds in turn, their prompts and worlds: what is sampled and scored."""
        return mixture(self.plan.prompts, self.plan.evaluation_seed, 0.0)

    @cached_property
    def eyes(self) -> Eyes:
        """What the readouts without sampling look at."""
        seed = self.plan.evaluation_seed + 1
        videos, paths, prompts = tracked_clips(self.plan.readout_clips, seed)
        texts = [
            text for arm in self.comparable() for text in self.texts(arm, self.plan.seeds[0], alignments(arm))
        ]
        clips = encoded(videos, prompts, parse.needed_teachers(texts), self.backbone)
        blocks = blocks_of(self.backbone)
        return Eyes(clips=clips, paths=paths, sigmas=self.plan.sigmas, blocks=blocks, seed=seed)

    # --- the gate -------------------------------------------------------------------------------------------

    def read_gate(self) -> list[Reading]:
        """The gate of every alignment; arms whose gate is closed are left out from then on. Raises StopStudy
        where a first stage was stopped."""
        self.check_files()
        texts, owners = self.gate_texts(self.texts)
        if not texts:  # the probes alone would take half a minute
            return []
        readings = self.kept_gate(texts)
        if readings is None:
            readings = read_gate(texts, self.backbone, self.plan.gate_clips, 0, self.progress)
            values = [asdict(reading) for reading in readings]
            keep(self.out / "gate.json", {"readings": values}, self.gate_basis(texts))
        self.close_gates(readings, owners)
        return readings

    def known_gate(self) -> bool:
        """Leaves out what `read_gate` would where that was read before; returns whether it was."""
        self.check_files()
        texts, owners = self.gate_texts(self.filled)
        readings = self.kept_gate(texts) if texts else []
        self.close_gates(readings or [], owners)
        return readings is not None

    def gate_texts(self, fill: Callable[..., list[str]]) -> tuple[dict[str, str], dict[str, str]]:
        """(alignment objectives, the arms that they are of), both by the name that the gate has for them;
        `fill`: `texts` or `filled`."""
        texts, owners = {}, {}
        for arm in self.comparable():
            for number, text in enumerate(fill(arm, self.plan.seeds[0], alignments(arm))):
                name = numbered(arm.name, number)
                texts[name], owners[name] = text, arm.name
        return texts, owners

    def gate_basis(self, texts: dict[str, str]) -> dict:
        """What the gate depends on."""
        return {"arms": texts, "clips": self.plan.gate_clips}

    def kept_gate(self, texts: dict[str, str]) -> list[Reading] | None:
        """The gate of these objectives, where it was read before."""
        found = kept(self.out / "gate.json", self.gate_basis(texts))
        return None if found is None else [Reading(**values) for values in found["readings"]]

    def close_gates(self, readings: Sequence[Reading], owners: dict[str, str]) -> None:
        """Leaves out arms whose gate is closed."""
        for reading in readings:
            if faults := reading.faults(Limits()):
                self.results.left_out[owners[reading.arm]] = f"its gate is closed: {'; '.join(faults)}"
        self.results.readings = list(readings)

    def check_files(self) -> None:
        """Leaves out arms whose files are not there and are not made by the plan."""
        for arm in self.arms:
            if missing := [path for seed in self.plan.seeds for path in self.files.missing(arm, seed)]:
                self.results.left_out[arm.name] = f"{missing[0]} is not there"

    def comparable(self) -> list[ArmPlan]:
        """Arms that are not left out."""
        return [arm for arm in self.arms if arm.name not in self.results.left_out]

    def make_file(self, file: FilePlan, path: Path, seed: int, waits: bool) -> None:
        """Makes a file of the plan where it is not there. Raises StopStudy, and TrainingError where its
        command fails."""
        if not path.is_file():
            if self.stop.asked:
                raise StopStudy
            self.progress.say(f"the file {path.name}")
        clips = self.right_clips(file.clips) if file.reads_clips else None
        if not make_file(file, path, seed, clips, self.threads):
            raise StopStudy

    def right_clips(self, count: int) -> Path:
        """A folder of drawn clips with the right dynamics, which no training has seen."""
        folder, seed = self.right_folder(count), max(self.plan.seeds) + 1
        with alone(folder, self.stop):
            return make_data(folder, lambda: self.backbone, count, seed, 0.0, self.progress)

    def right_folder(self, count: int) -> Path:
        """That folder."""
        return self.out / "data" / f"{count}-files"

    # --- trainings ------------------------------------------------------------------------------------------

    def data(self, regime: Regime, arm: ArmPlan, seed: int) -> Path:
        """The clips of one training, drawn where they are not there yet."""
        folder, wrong = self.data_folder(regime, arm, seed), self.wrong(regime, arm)
        with alone(folder, self.stop):
            return make_data(folder, lambda: self.backbone, regime.clips, seed, wrong, self.progress)

    def data_folder(self, regime: Regime, arm: ArmPlan, seed: int) -> Path:
        """Folder of those clips."""
        return self.out / "data" / f"{regime.clips}-wrong{self.wrong(regime, arm):g}-seed{seed}"

    def wrong(self, regime: Regime, arm: ArmPlan) -> float:
        """Share of them with corrupted dynamics."""
        return next((wrong for wrong in (arm.wrong, regime.wrong) if wrong is not None), base_wrong())

    def texts(self, arm: ArmPlan, seed: int, texts: Sequence[str]) -> list[str]:
        """Objectives of an arm with the file of its first stage, which is trained here where it is missing:
        on the clips of the first regime."""
        if not any(STAGE1 in text for text in texts):
            return list(texts)
        folder = self.head(arm, seed).parent
        data = self.data(self.plan.regimes[0], arm, seed)
        with alone(folder, self.stop):
            path = first_stage(arm, folder, data, seed, self.stop, self.progress)
        if path is None:
            raise StopStudy
        return self.filled(arm, seed, texts)

    def filled(self, arm: ArmPlan, seed: int, texts: Sequence[str]) -> list[str]:
        """Objectives of an arm with the place of that file, whether it is there or not."""
        return [text.replace(STAGE1, str(self.head(arm, seed))) for text in texts]

    def head(self, arm: ArmPlan, seed: int) -> Path:
        """The motion head of an arm's first stage."""
        return self.out / "stage1" / f"{arm.stage1}-seed{seed}" / HEAD

    def training(self, regime: Regime, arm: ArmPlan, seed: int) -> Training:
        """One training: what, on what, where."""
        return Training(
            regime=regime, arm=arm, seed=seed, data=self.data(regime, arm, seed),
            objectives=self.texts(arm, seed, objectives_of(arm)), out=self.folder(regime.name, arm, seed),
        )  # fmt: skip

    def folder(self, regime: str, arm: ArmPlan, seed: int) -> Path:
        """Folder of one model."""
        return self.out / regime / arm.name / f"seed-{seed}"

    # --- readouts -------------------------------------------------------------------------------------------

    def measured(self, path: Path, basis: dict, make: Callable[[], Measures | None]) -> Measures:
        """Measures kept in a file, made where they are not there. Raises StopStudy."""
        found = kept(path, basis)
        if found is None:
            if self.stop.asked or (found := make()) is None:
                raise StopStudy
            keep(path, found, basis)
        return found

    def of_scene(self, folder: Path, arm: ArmPlan, seed: int, ready: Callable[[], None]) -> Measures:
        """`read_scene` of a model; nothing where what makes the arm does not act on what that reads."""
        texts = self.files.corrections(arm, seed)
        if edits_noise(texts) or arm.cfg is not None or arm.worlds:
            return {}
        basis = self.basis(arm, seed, "readout_clips", "sigmas", "evaluation_seed")

        def make() -> Measures:
            ready()
            # Corrections do not change what blocks hold.
            eyes = replace(self.eyes, blocks=()) if texts and arm.recipe is None else self.eyes
            return read_scene(self.backbone, eyes, corrections_of(texts, eyes.clips.prompts))

        return self.measured(folder / "scene.json", basis, make)

    def basis(self, arm: ArmPlan, seed: int, *names: str) -> dict:
        """What measures of an arm depend on, beside its trained weights: settings of the plan, corrections
        and the content of their files."""
        files = self.files.of_arm(arm, seed)
        found = {name: getattr(self.plan, name) for name in names}
        found |= {"corrections": self.files.corrections(arm, seed)}
        return found | ({"files": digest_of(files)} if files else {})

    def of_clips(self, folder: Path, arm: ArmPlan, seed: int, ready: Callable[[], None]) -> Measures:
        """Scores of a model's sampled clips, some of which are kept as a picture."""
        texts = self.files.corrections(arm, seed)
        basis = self.basis(arm, seed, "prompts", "sampling_steps", "evaluation_seed")
        cfg = self.plan.cfg if arm.cfg is None else arm.cfg

        def make() -> Measures:
            ready()
            _, prompts, _ = self.scenes
            settings = {"steps": self.plan.sampling_steps, "cfg": cfg}
            clips, _ = sampled_clips(
                self.backbone, prompts, corrections=corrections_of(texts, prompts),
                seed=self.plan.evaluation_seed, **settings,
            )  # fmt: skip
            return self.scored(folder, clips)

        return self.measured(folder / "clips.json", basis | {"cfg": cfg, "scores": list(SCORES)}, make)

    def scored(self, folder: Path, clips: Tensor) -> Measures:
        """Scores of clips of `scenes`' prompts; their first ones are kept as a picture."""
        _, prompts, worlds = self.scenes
        write_strip(folder / "strip.png", clips)
        return {name: value.tolist() for name, value in scores_of(clips, prompts, worlds).items()}

    def of_alignment(self, run: Training, asked: ArmPlan, ready: Callable[[], None]) -> Measures:
        """The held-out loss of the objectives of `asked`, by the model of `run`, as "alignment ARM"."""
        found: Measures = {}
        for number, text in enumerate(self.texts(asked, run.seed, alignments(asked))):
            name = f"alignment {numbered(asked.name, number)}"
            names = ("readout_clips", "sigmas", "evaluation_seed", "refit_steps")
            basis = {key: getattr(self.plan, key) for key in names} | {"objective": text}

            def make(name: str = name, text: str = text) -> Measures | None:
                ready()
                clips = TrainingClips(run.data, batch=run.settings.trainer.batch, seed=run.seed)
                steps, told = self.plan.refit_steps, (self.stop, self.progress)
                values = read_alignment(self.backbone, text, clips, self.eyes, steps, *told)
                return None if values is None else {name: values}

            found |= self.measured(run.out / f"{name}.json", basis, make)
        return found

    # --- all of it ------------------------------------------------------------------------------------------

    def go(self) -> Results:
        """Makes what is missing. Several processes with one plan and one folder share the work: each first
        makes what no other is at, and then waits for what the others are making. Raises what `finetune` and
        `read_gate` raise."""
        try:
            with alone(self.out / "gate", self.stop):
                self.read_gate()
            for waits in (False, True):
                self.results.found.clear()
                for folder, work in self.works():
                    with alone(folder, self.stop, waits) as free:
                        if free:
                            work(waits)
        except StopStudy:
            self.results.stopped = True
        return self.results

    def works(self) -> Iterator[tuple[Path, Callable[[bool], None]]]:
        """All that is made and read, as the folder that it is kept in and what does it; the latter is told
        whether everything before is there."""
        for file, seed in self.files.jobs(self.comparable()):
            path = self.files.path(file, seed)
            yield path.with_suffix(""), partial(self.make_file, file, path, seed)
        for name in ROWS:
            yield self.out / SAMPLED / name, partial(self.sample_row, name)
        for arm in [BASE, *(arm for arm in self.comparable() if arm.recipe is None)]:
            for seed in self.plan.seeds if self.files.by_seed(arm) else self.plan.seeds[:1]:
                yield self.folder(SAMPLED, arm, seed), partial(self.sample_arm, arm, seed)
        for regime in self.plan.regimes:
            for seed, arm in self.jobs(regime):
                yield self.folder(regime.name, arm, seed), partial(self.train_and_read, regime, arm, seed)

    def jobs(self, regime: Regime) -> Iterator[tuple[int, ArmPlan]]:
        """Trainings of a regime: seed by seed, the control first."""
        arms = [arm for arm in self.comparable() if takes_part(arm, regime)]
        for seed in self.plan.seeds:
            yield from ((seed, arm) for arm in sorted(arms, key=lambda arm: arm.name != self.plan.control))

    def train_and_read(self, regime: Regime, arm: ArmPlan, seed: int, waits: bool) -> None:
        """One training and all its readouts; later where the control that it is measured by is still being
        trained."""
        run = self.training(regime, arm, seed)
        if exported(run.out) is None:
            self.progress.say(f"{regime.name}, {arm.name}, seed {seed}")
        if not train_arm(run, self.backbone, self.stop, self.progress):
            raise StopStudy
        ready = once(lambda: load_trained(self.backbone, run.out))
        found: Measures = {}
        if "alignment" in regime.readouts:
            for asked in self.asked_of(regime, arm):
                found |= self.of_alignment(run, asked, ready)
        if "scene" in regime.readouts:
            found |= self.of_scene(run.out, arm, seed, ready)
        if "clips" in regime.readouts:
            found |= self.of_clips(run.out, arm, seed, ready)
        if "speed" in regime.readouts:
            control = self.folder(regime.name, ArmPlan(name=self.plan.control), seed)
            if not waits and exported(control) is None:
                return
            needed = steps_to(run.log, last_loss(control / run.log.name))
            found["steps to equal loss"] = [needed / regime.steps]
        self.results.add(regime.name, arm.name, found)

    def asked_of(self, regime: Regime, arm: ArmPlan) -> list[ArmPlan]:
        """Arms whose objectives are read of an arm's trainings: its own, and of the control everyone's."""
        asked = self.comparable() if arm.name == self.plan.control else [arm]
        return [other for other in asked if takes_part(other, regime)]

    def sample_row(self, name: str, waits: bool) -> None:
        """A row that frames the tables."""
        names = ("prompts", "evaluation_seed")
        basis = {name: getattr(self.plan, name) for name in names} | {"scores": list(SCORES)}
        folder = self.out / SAMPLED / name

        def make() -> Measures:
            clips = frame_of(name, self.scenes[0], self.backbone, self.plan.evaluation_seed)
            return self.scored(folder, clips)

        self.results.add(SAMPLED, name, self.measured(folder / "clips.json", basis, make))

    def sample_arm(self, arm: ArmPlan, seed: int, waits: bool) -> None:
        """Readouts of an arm that is not trained; later where its files are still being made."""
        if not waits and not all(path.is_file() for path in self.files.of_arm(arm, seed)):
            return
        path = file_of(self.files.filled(arm.dit, seed)) if arm.dit else base_file()
        folder, ready = self.folder(SAMPLED, arm, seed), once(lambda: load_weights_into(self.backbone, path))
        if not folder.is_dir():
            self.progress.say(f"{SAMPLED}, {arm.name}")
        found = self.of_scene(folder, arm, seed, ready) | self.of_clips(folder, arm, seed, ready)
        self.results.add(SAMPLED, arm.name, found)


def once(make: Callable) -> Callable:
    """A function that works when it is first called, and then knows the answer."""
    known: list = []

    def call() -> object:
        if not known:
            known.append(make())
        return known[0]

    return call
