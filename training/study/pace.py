"""Core seconds of a study's units of work on this machine, each by a few of it in a folder that is thrown
away."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time

from ...encoders.need import TeacherNeed
from ...toyworld import mixture
from ..console import ProgressLine, StopRequest, TrainingError
from ..data.batches import TrainingClips
from ..data.clips import Clips
from ..data.feature_cache import FeatureCache
from ..data.features import prepare_features
from ..loop.loop import train
from ..loop.task import OnStep, Run
from ..objectives import parse
from ..recipes import load_recipe
from ..tasks import predictor
from ..tasks.finetune import FinetuneConfig, make_task
from ..tasks.model import load_dit
from ..tasks.pila import settings as pila
from ..tasks.pila.data import toy_clips
from ..tasks.pila.stages import FULL
from ..tasks.pila.task import PilaRun
from . import corrections
from .plan import STAGE1, ArmPlan, alignments, kind_of, objectives_of
from .probes import tracked_clips
from .readouts import Eyes, blocks_of, read_alignment, read_scene
from .runs import make_data
from .sampling import sampled_clips, scores_of
from .scene import encoded
from .study import Study

TIMED = 3
"""Steps that are timed of a kind, after a first one."""
BATCH = 8
"""Clips that are timed."""
LOOKED = 12
"""Clips of the readouts that are timed."""
FAR = 10**6
"""Steps that no timed run comes to."""
NEVER = {"every": FAR}
"""Settings of a timed run that is neither validated nor saved."""
SHIPPED = {
    "lamo": "lamo predictor=toy_predictor_order1.safetensors",
    "pila": "pila adapter=toy_pila.safetensors",
}
"""Corrections with files that come with the pack."""


class Paces(dict[str, float]):
    """Core seconds of units of work, each timed when it is first asked for. CPU time of the process, so that
    what else the machine does counts little."""

    def __init__(self, study: Study, folder: Path) -> None:
        """folder: for what is timed; the study's own is not written to."""
        super().__init__()
        self.study, self.folder = study, folder
        self.quiet = ProgressLine("timing", io.StringIO())

    def __missing__(self, unit: str) -> float:
        self.study.progress.say(f"timing: {unit}")
        kind, _, of = unit.partition(" ")
        made = {"clip": self.of_clip, "teacher": self.of_teacher, "step": self.of_step, "look": self.of_look,
                "refit": self.of_refit, "sample": self.of_sample, "score": self.of_score}[kind]  # fmt: skip
        self[unit] = made(of) if of else made()
        return self[unit]

    # --- what is worked on ----------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """A folder of drawn clips; drawing them is timed."""
        self["clip"]
        return self.folder / "clips"

    def of_clip(self) -> float:
        """A clip to train on, drawn and encoded."""
        backbone, began = self.study.backbone, process_time()
        make_data(self.folder / "clips", lambda: backbone, BATCH, 0, 0.0, self.quiet)
        return (process_time() - began) / BATCH

    def texts_of(self, kind: str) -> tuple[ArmPlan, list[str]]:
        """The first trained arm with objectives of this kind, and those of them that need no first stage."""
        arms = [arm for arm in self.study.comparable() if arm.recipe is not None]
        for arm in arms:
            texts = [text.replace(f" motion_head={STAGE1}", "") for text in objectives_of(arm)]
            for chosen in (texts, *([text] for text in texts)):
                if kind_of(chosen) == kind:
                    return arm, chosen
        raise TrainingError(f"no arm is trained with {kind}.")

    @property
    def needs(self) -> list[TeacherNeed]:
        """What the plan asks of teachers."""
        return parse.needed_teachers([text for arm in self.study.comparable() for text in alignments(arm)])

    def of_teacher(self) -> float:
        """A clip seen by a teacher."""
        needs, data = self.needs, TrainingClips(self.data, batch=1, seed=0)
        began = process_time()
        prepare_features(data, needs, FeatureCache(self.folder / "features"), progress=self.quiet)
        return (process_time() - began) / (BATCH * len(needs))

    @cached_property
    def eyes(self) -> Eyes:
        """What the readouts would look at, fewer clips of it."""
        plan, backbone = self.study.plan, self.study.backbone
        videos, paths, prompts = tracked_clips(LOOKED, plan.evaluation_seed)
        clips = encoded(videos, prompts, self.needs, backbone)
        return Eyes(clips=clips, paths=paths, sigmas=plan.sigmas, blocks=blocks_of(backbone), seed=0)

    # --- units ----------------------------------------------------------------------------------------------

    def of_step(self, kind: str) -> float:
        """A training step: of a predictor, of PILA, or of a fine-tuning with objectives of these kinds."""
        if kind == "predictor":
            config = replace(predictor.RECIPES["toy"], held_out=0.0, device="cpu", **NEVER)
            return timed(predictor.PredictorTraining(Clips.from_folder(self.data), config).run)
        if kind.startswith("pila "):
            return self.of_pila_step(int(kind.split()[1]))
        arm, texts = self.texts_of(kind)
        config = replace(load_recipe(arm.recipe, FinetuneConfig), objectives=texts)
        clips = TrainingClips(self.data, batch=config.trainer.batch, seed=0)
        needs, features = parse.needed_teachers(texts), FeatureCache(self.data / "features")
        prepare_features(clips, needs, features, progress=self.quiet)
        task = make_task(config, load_dit(config), clips, needs, features, None)
        trainer = replace(
            config.trainer, steps=FAR, tensorboard=False, validation_clips=0, validate_every=FAR
        )
        run = Run(config=trainer, task=task, out=None)

        def go(on_step: OnStep) -> None:
            run.on_step = on_step
            train(run, StopRequest(), self.quiet)

        return timed(go)

    def of_pila_step(self, batch: int) -> float:
        """A step of the coupling stage, which most steps are of, on so many clips."""
        settings, adapter = pila.RECIPES["toy"]
        config = replace(settings, batch=batch, held_out_clips=0, physics_warmup=0, device="cpu", **NEVER)
        clips = toy_clips(batch, 0, self.folder / "pila", self.study.backbone, self.quiet)
        run = PilaRun(self.study.backbone, clips, config, adapter, method=replace(FULL, staged=False))
        return timed(lambda on_step: run.run(on_step=on_step))

    def of_refit(self, kind: str) -> float:
        """A step of an objective's projector before a transformer that stays."""
        _, texts = self.texts_of(kind)
        clips, told = TrainingClips(self.data, batch=BATCH, seed=0), (StopRequest(), self.quiet)
        prepare_features(
            clips, parse.needed_teachers(texts), FeatureCache(self.data / "features"), progress=self.quiet
        )
        eyes, times = self.eyes, []
        for steps in (1, 1 + TIMED):
            began = process_time()
            read_alignment(self.study.backbone, texts[0], clips, eyes, steps, *told)
            times.append(process_time() - began)
        return max(0.0, times[1] - times[0]) / TIMED

    def of_look(self) -> float:
        """A clip of the readouts, at all noise levels."""
        eyes, began = self.eyes, process_time()
        read_scene(self.study.backbone, eyes)
        return (process_time() - began) / len(eyes.paths)

    def of_sample(self, correction: str = "") -> float:
        """A sampler step of a clip, or what a correction adds to it."""
        if not correction:
            return max(0.0, self.sampled(1 + TIMED) - self.sampled(1)) / (TIMED * BATCH)
        added = self.sampled(1 + TIMED, [self.correction(correction)]) - self.sampled(1 + TIMED)
        return max(0.0, added) / ((1 + TIMED) * BATCH)

    def correction(self, kind: str) -> str:
        """A correction of the plan of this kind whose files are there, or one with a file that ships."""
        known = [text for arm in self.study.arms for text in arm.corrections if text.split()[0] == kind]
        there = (text for text in known if all(path.is_file() for path in corrections.files_of([text])))
        return next(there, SHIPPED.get(kind, known[0]))

    def of_score(self) -> float:
        """A clip decoded and scored."""
        videos, prompts, worlds = mixture(BATCH, self.study.plan.evaluation_seed, 0.0)
        latents, began = self.study.backbone.encode_video(videos), process_time()
        scores_of(self.study.backbone.decode_latent(latents), prompts, worlds)
        return (process_time() - began) / BATCH

    def sampled(self, steps: int, texts: Sequence[str] = ()) -> float:
        """Core seconds of `BATCH` clips sampled in so many steps."""
        _, prompts, _ = mixture(BATCH, self.study.plan.evaluation_seed, 0.0)
        acting, began = corrections.corrections_of(texts, prompts), process_time()
        sampled_clips(self.study.backbone, prompts, steps=steps, cfg=self.study.plan.cfg, corrections=acting)
        return process_time() - began


def timed(go: Callable[[OnStep], object]) -> float:
    """Core seconds of a step of a training that `go` starts: the median of some, after the first."""
    ends: list[float] = []

    def observe(report: object) -> bool:
        ends.append(process_time())
        return len(ends) <= TIMED

    go(observe)
    return median(after - before for before, after in pairwise(ends))
