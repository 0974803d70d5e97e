"""Whether a comparison of alignment objectives could come out otherwise: what each one asks of a student,
before any training.

An objective has something to teach about motion only if a clip that stands still does not satisfy it, if the
student's own grid of tokens can express what it asks, if its correspondences are no uniform haze, and if its
teacher knows more of motion than the student does already. Nothing is trained here; it takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...encoders.need import TeacherNeed
from ...methods import relational
from ...toyworld import mixture
from ..backbones import Backbone
from ..console import ProgressLine
from ..objectives import parse
from ..objectives.align import AlignObjective, PdaObjective
from ..objectives.base import StepView
from ..objectives.settings import AlignSettings, TsaSettings
from ..tasks.finetune import token_width
from .probes import tracked_clips, velocity_r2
from .scene import Encoded, Scene, batches, encoded, look

PROBES = 3
"""Clips for the probes, per clip for the losses."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where the gate closes."""

    frozen: float = 0.5
    """Largest share of an objective that a frozen clip may satisfy."""
    expressed: float = 0.5
    """Smallest share of what the frozen clip leaves that perfect features on the student's grid must
    satisfy."""
    entropy: float = 0.9
    """Largest entropy of P, as a share of the uniform distribution's, for the objectives that compare P."""
    lead: float = 0.0
    """By how much the teacher's velocity R^2 must exceed the base's."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Measurements of one arm that the gate reads."""

    arm: str
    objective: str
    """Its kind."""
    teacher: str
    frozen: float
    """1 - (loss of the best student that stands still) / (loss of the best student that knows nothing); both
    less the loss of the teacher itself, as in the next figure."""
    expressed: float
    """1 - (loss of the teacher's features squeezed through the student's grid) / (loss of the best student
    that stands still)."""
    entropy: float
    """Entropy of the teacher's P[i, f] over all tokens i and frames f, 1 for uniform."""
    entropy_moving: float
    """The same over the tokens that move most (a fifth)."""
    teacher_r2: float
    """Held-out R^2 of a linear probe for a thing's velocity on the teacher's features."""
    base_r2: float
    """The same on the base's tokens at the aligned block."""

    def faults(self, limits: Limits) -> list[str]:
        """Why its gate is closed, in words; nothing where it is open."""
        tempered = self.objective in ("tsa", "mtsa")
        found = [
            (self.frozen > limits.frozen, f"a frozen clip satisfies {self.frozen:.0%} of it"),
            (
                self.expressed < limits.expressed,
                f"the student's grid expresses {self.expressed:.0%} of what moves",
            ),
            (tempered and self.entropy > limits.entropy, f"P has {self.entropy:.0%} of a uniform entropy"),
            (
                self.teacher_r2 <= self.base_r2 + limits.lead,
                f"its teacher reads velocities no better than the base (R^2 {self.teacher_r2:.2f} against "
                f"{self.base_r2:.2f})",
            ),
        ]
        return [words for closed, words in found if closed]


def read_gate(
    arms: Mapping[str, str],
    backbone: Backbone,
    clips: int = 32,
    seed: int = 0,
    progress: ProgressLine | None = None,
) -> list[Reading]:
    """The gate of every arm. arms: alignment objectives ("kind key=value ...") by name; backbone: whole, the
    base that would be trained; clips: real clips of all worlds to look at, and `PROBES` times as many of
    those whose things can be followed, for the probes.

    Raises TrainingError for a bad objective and TeacherError for a teacher that cannot be loaded.
    """
    needs = parse.needed_teachers(list(arms.values()))
    blocks = sorted(
        {
            settings.block
            for _, settings in map(parse.parse, arms.values())
            if isinstance(settings, AlignSettings)
        }
    )
    progress = progress or ProgressLine("gate")
    videos, prompts, _ = mixture(clips, seed, 0.0)
    progress.say(f"features of {clips} clips")
    scene = look(encoded(videos, prompts, needs, backbone), backbone, blocks, seed=seed)
    followed, paths, prompts = tracked_clips(PROBES * clips, seed + 1)
    progress.say(f"velocity probes on {len(followed)} clips")
    unforced = {plain(need).key: plain(need) for need in needs}
    probed = look(encoded(followed, prompts, list(unforced.values()), backbone), backbone, blocks, seed=seed)
    found = []
    for arm, text in arms.items():
        (objective,) = parse.build(
            [text], width=token_width(backbone), blocks=len(backbone.blocks), channels=channels_of(scene)
        ).values()
        found.append(read_arm(arm, objective, scene, probed, paths))
    return found


def plain(need: TeacherNeed) -> TeacherNeed:
    """The same teacher's features of the whole clip, without a forecast."""
    return TeacherNeed(name=need.name, source=need.source)


def channels_of(clips: Scene | Encoded) -> dict[str, int]:
    """Widths of the teachers' features, by `TeacherNeed.key`."""
    return {key: found["features"].shape[1] for key, found in clips.features.items()}


def knowledge(objective: AlignObjective, probed: Scene) -> Tensor:
    """The teacher's features of whole clips `B C F H W`, through the objective's motion head where it has
    one."""
    if isinstance(objective, PdaObjective):
        return probed.features[plain(objective.teachers[0]).key]["features"]
    return objective.teacher_volume(probed.view(slice(None)))


@torch.no_grad()
def read_arm(arm: str, objective: AlignObjective, scene: Scene, probed: Scene, paths: Tensor) -> Reading:
    """The gate of one arm. probed, paths: clips whose things are followed, and their places
    (`probes.tracked_clips`)."""
    need, settings = objective.teachers[0], objective.settings
    nothing, still, squeezed = losses(objective, scene)
    temperature = settings.temperature if isinstance(settings, TsaSettings) else 0.1
    entropy, moving = entropies(objective, scene, temperature)
    tap = probed.taps[settings.block]
    tokens, grid = relational.without_first_frame(tap.tokens, tap.grid, probed.latents.shape[2])
    features = relational.fit(knowledge(objective, probed), grid)
    return Reading(
        arm=arm,
        objective=objective.kind,
        teacher=need.name,
        frozen=1 - still / max(nothing, 1e-12),
        expressed=1 - squeezed / max(still, 1e-12),
        entropy=entropy,
        entropy_moving=moving,
        teacher_r2=velocity_r2(features, paths),
        base_r2=velocity_r2(relational.to_volume(tokens, grid), paths),
    )


def losses(objective: AlignObjective, scene: Scene) -> tuple[float, float, float]:
    """Mean losses of the best student that knows nothing, of the best one that stands still, and of the
    teacher's features squeezed through the student's grid; each less the loss of those features as they are,
    which is the least there is.

    Knows nothing: one feature everywhere. Stands still: one feature per place, all the clip long. Of each,
    several are tried and the one that the objective likes best counts.
    """
    parts = list(batches(len(scene.videos)))
    targets = [objective.target(scene.view(rows)) for rows in parts]
    whole = [teacher_on_grid(objective, scene.view(rows)) for rows in parts]
    mean = torch.cat(whole).mean(dim=(0, 2, 3, 4), keepdim=True)
    sums: dict[str, float] = {}
    for rows, target, uncentred in zip(parts, targets, whole):
        view = scene.view(rows)
        blank = torch.zeros_like(target)
        students = {"nothing": blank, "nothing, mean": mean.expand_as(target)}
        if isinstance(objective, PdaObjective):  # what stands still does not change
            students["still"] = blank
        else:
            middle = target.shape[2] // 2
            students["still, mean"] = uncentred.mean(dim=2, keepdim=True).expand_as(target)
            students["still, own mean"] = target.mean(dim=2, keepdim=True).expand_as(target)
            students["still, middle"] = target[:, :, middle : middle + 1].expand_as(target)
        students |= {"squeezed": squeeze(objective, view, target), "perfect": target}
        grid, teacher = tuple(target.shape[2:]), relational.to_tokens(target)
        for name, student in students.items():
            loss = float(objective.compare(relational.to_tokens(student), teacher, grid, view))
            sums[name] = sums.get(name, 0.0) + loss * len(target) / len(scene.videos)
    words = ("nothing", "still", "squeezed", "perfect")
    best = {word: min(value for name, value in sums.items() if name.startswith(word)) for word in words}
    best["still"] = min(best["still"], best["nothing"])  # who knows nothing stands still too
    nothing, still, squeezed = (best[word] - best["perfect"] for word in words[:3])
    return nothing, still, squeezed


def teacher_on_grid(objective: AlignObjective, view: StepView) -> Tensor:
    """The target with its mean over time, where that is taken off."""
    if isinstance(objective, PdaObjective):
        return objective.target(view)
    return objective.on_grid(objective.teacher_volume(view), objective.student_tokens(view)[1])


def squeeze(objective: AlignObjective, view: StepView, target: Tensor) -> Tensor:
    """The target averaged to the student's grid of tokens and brought back, as the best projector could."""
    grid = objective.coarse(objective.student_tokens(view)[1])
    frames = target.shape[2] if isinstance(objective, PdaObjective) else min(grid[0], target.shape[2])
    coarse = (frames, *map(min, grid[1:], target.shape[3:]))
    return relational.fit(relational.fit(target, coarse), target.shape[2:])


def entropies(objective: AlignObjective, scene: Scene, temperature: float) -> tuple[float, float]:
    """Entropy of the teacher's correspondences P[i, f] (TSA eq 8) over that of a uniform distribution: (all
    tokens, moving)."""
    total, moving, count = 0.0, 0.0, 0
    for rows in batches(len(scene.videos)):
        view = scene.view(rows)
        for volume, video in zip(objective.target(view), scene.videos[rows]):
            frames, places = volume.shape[1], math.prod(volume.shape[2:])
            unit = functional.normalize(volume.flatten(1).T, dim=-1)
            p = (unit @ unit.T).unflatten(1, (frames, places)).div(temperature).softmax(dim=-1)
            share = torch.special.entr(p).sum(dim=-1).mean(dim=-1) / math.log(places)
            change = (video[:, 1:] - video[:, :-1]).abs().mean(dim=0)[None, None]
            mask = relational.top_share(functional.adaptive_avg_pool3d(change, volume.shape[1:])[0], 0.2)
            total, moving, count = (
                total + float(share.mean()),
                moving + float(share[mask.flatten()].mean()),
                count + 1,
            )
    return total / count, moving / count


def table(readings: Sequence[Reading], limits: Limits) -> str:
    """Markdown: what was read of each arm, and its gate."""
    heads = ("arm", "teacher", "frozen clip "
                               "satisfies", "student's grid expresses", "entropy of P, all / moving",
             "velocity R^2, teacher / base", "gate")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in readings:
        faults = r.faults(limits)
        cells = (
            r.arm, r.teacher, f"{r.frozen:.0%}", f"{r.expressed:.0%}", f"{r.entropy:.0%} / "
                                                                       f"{r.entropy_moving:.0%}",
            f"{r.teacher_r2:.2f} / {r.base_r2:.2f}", "closed: " + "; ".join(faults) if faults else "open",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
