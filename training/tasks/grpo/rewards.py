"""Rewards by name: what judges the clips that a policy samples. A higher reward is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ....methods.critics import Critic, CriticError
from ....methods.critics.gate import gate_of_pool, pixel_motion
from ....methods.weights import WeightsError
from ...console import TrainingError
from ...settings import Count, NotNegative, Positive, kind_and_settings
from .http import check_url, judge_by_http

ENTRY_POINTS = "latent_physics.rewards"
"""Group of entry points by which another package offers rewards: functions (frames `B 3 T H W` in [0, 1],
prompts, fps) -> scores `B`."""


@dataclass(kw_only=True)
class Clips:
    """Clips of one batch, as rewards see them."""

    latents: Tensor
    """`B C T H W` in model scaling."""
    cond: Tensor
    """Pooled prompts, `B D`."""
    prompts: Sequence[str]
    fps: float
    latent_fps: float
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def frames(self) -> Tensor:
        """`B 3 T H W` in [0, 1], decoded when the first reward asks for them."""
        return self.decode(self.latents)


@dataclass(kw_only=True)
class RewardSettings:
    """Settings of every reward."""

    weight: NotNegative = 1.0
    """Weight of the reward in the sum; ignored on the watch list."""
    batch: Count = 8
    """Maximum number of clips that are judged at once."""
    device: str = "auto"
    """Device of the judge's network; auto is the policy's."""


@dataclass(kw_only=True)
class NetworkSettings(RewardSettings):
    """A critic that looks through a frozen network."""

    source: str = ""
    """Name of an encoder (toy_vjepa2, vjepa2, ...), folder of one, or file of a motion predictor."""


@dataclass(kw_only=True)
class HttpSettings(RewardSettings):
    """A judge behind a web address."""

    url: str = ""
    """Address that takes JSON and answers {"scores": [...]}."""
    timeout: Positive = 60.0
    """Seconds to wait for an answer."""
    retries: Count = 3
    """Attempts before the run stops with its state saved."""


@dataclass(kw_only=True)
class PluginSettings(RewardSettings):
    """A reward of another installed package."""

    name: str = ""
    """Name of its entry point."""


class Reward:
    """One judge. `measure` runs batch by batch, `score` once for whole groups."""

    name: str
    settings: RewardSettings

    def __init__(self, settings: RewardSettings, device: torch.device) -> None:
        """Raises TrainingError where a part of it is missing."""
        self.settings = settings
        self.device = device if settings.device == "auto" else torch.device(settings.device)

    def measure(self, clips: Clips) -> Tensor:
        """Raw measures `B K` on the CPU. Raises CriticError."""
        raise NotImplementedError

    def score(self, measured: Tensor, group: int) -> Tensor:
        """Rewards `B` from the measures of whole groups of `group` clips, one group after another."""
        return measured[:, 0]


class CriticReward(Reward):
    """A critic's plausibility x the gate of its group: the stillest clip gains nothing by it."""

    method: ClassVar[str]

    def __init__(self, settings: NetworkSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.critic = self.load(settings.source)

    def load(self, source: str) -> Critic:
        """Raises TrainingError."""
        from ....encoders.critics import load_critic

        if not source:
            raise TrainingError(
                f"the reward {self.method} has no source; give the encoder or predictor it looks through, "
                f'for example "{self.method} source=FILE".'
            )
        shipped = Path(__file__).resolve().parents[3] / "toyworld" / "weights" / f"{source}.safetensors"
        found = str(shipped) if self.method == "motion" and shipped.is_file() else source
        try:
            return load_critic(self.method, found, self.device)
        except (ValueError, OSError, WeightsError) as error:
            raise TrainingError(f"the reward {self.method} cannot be loaded: {error}") from error

    def measure(self, clips: Clips) -> Tensor:
        latent = self.critic.reads == "latent"
        what, fps = (clips.latents, clips.latent_fps) if latent else (clips.frames, clips.fps)
        found = self.critic.judge(what.to(self.device), fps, clips.cond.to(self.device) if latent else None)
        return torch.stack([found.plausibility, found.motion], dim=1)

    def score(self, measured: Tensor, group: int) -> Tensor:
        gates = [gate_of_pool(motion, self.critic.reads) for motion in measured[:, 1].split(group)]
        return measured[:, 0] * torch.cat(gates)


class SurpriseReward(CriticReward):
    method = "surprise"


class GeometryReward(CriticReward):
    method = "geometry"


class MotionReward(CriticReward):
    method = "motion"


class DynamicDegree(Reward):
    """Amount of motion: a number to watch, since every critic likes stillness."""

    def measure(self, clips: Clips) -> Tensor:
        return pixel_motion(clips.frames, clips.fps)[:, None]


class LawReward(Reward):
    """The law score of clips of the toy world's prompts."""

    def measure(self, clips: Clips) -> Tensor:
        from ....toyworld import score
        from ....toyworld.prompts import understand

        worlds = [understand(prompt).world for prompt in clips.prompts]
        if None in worlds:
            raise CriticError(
                f"the prompt {clips.prompts[worlds.index(None)]!r} names no toy world, so the law of its "
                "clip is unknown: use toy_prompts."
            )
        return score(clips.frames.cpu(), worlds)[:, None]


class AdherenceReward(Reward):
    """The adherence of clips of the toy world's prompts."""

    def measure(self, clips: Clips) -> Tensor:
        from ....toyworld import adherence

        return adherence(clips.frames.cpu(), list(clips.prompts))[:, None]


class HttpReward(Reward):
    """A judge behind a web address (http.py)."""

    settings: HttpSettings

    def __init__(self, settings: HttpSettings, device: torch.device) -> None:
        check_url(settings.url)
        super().__init__(settings, device)

    def measure(self, clips: Clips) -> Tensor:
        asked = {"timeout": self.settings.timeout, "retries": self.settings.retries}
        return judge_by_http(self.settings.url, clips.frames, clips.prompts, clips.fps, **asked)[:, None]


class PluginReward(Reward):
    """A function of another package."""

    def __init__(self, settings: PluginSettings, device: torch.device) -> None:
        from importlib.metadata import entry_points

        super().__init__(settings, device)
        found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if settings.name not in found:
            raise TrainingError(
                f"no installed package offers the reward {settings.name!r}; the group {ENTRY_POINTS} has "
                f"{', '.join(found) or 'none'}."
            )
        self.judge = found[settings.name].load()

    def measure(self, clips: Clips) -> Tensor:
        found = self.judge(clips.frames, list(clips.prompts), clips.fps)
        return torch.as_tensor(found, dtype=torch.float32).reshape(len(clips.prompts), 1).cpu()


KINDS: dict[str, tuple[type[RewardSettings], type[Reward]]] = {
    "surprise": (NetworkSettings, SurpriseReward),
    "geometry": (NetworkSettings, GeometryReward),
    "motion": (NetworkSettings, MotionReward),
    "dynamic_degree": (RewardSettings, DynamicDegree),
    "law": (RewardSettings, LawReward),
    "adherence": (RewardSettings, AdherenceReward),
    "http": (HttpSettings, HttpReward),
    "plugin": (PluginSettings, PluginReward),
}


def parse(text: str) -> tuple[str, RewardSettings]:
    """Reads "kind key=value ...". Raises TrainingError for an unknown kind or key, or a value of the wrong
    type."""
    return kind_and_settings(text, {kind: made for kind, (made, _) in KINDS.items()}, "reward")


def build(texts: Sequence[str], device: torch.device) -> dict[str, Reward]:
    """Rewards by name, in order; a kind that comes twice is numbered. Raises TrainingError."""
    found: dict[str, Reward] = {}
    for text in texts:
        kind, settings = parse(text)
        twice = sum(name.partition("-")[0] == kind for name in found)
        name = kind if not twice else f"{kind}-{twice + 1}"
        found[name] = KINDS[kind][1](settings, device)
    return found


def measured(rewards: dict[str, Reward], clips: Clips) -> dict[str, Tensor]:
    """Measures of a batch by reward, `B K`. Raises CriticError for clips that are not finite."""
    finite = torch.isfinite(clips.latents).flatten(1).all(1)
    if not finite.all():
        number = int((~finite).nonzero()[0])
        raise CriticError(
            f"the clip sampled for {clips.prompts[number]!r} holds NaN or infinite values, so it has no "
            "reward: lower the learning rate or noise_level, or use bf16."
        )
    found = {}
    for name, reward in rewards.items():
        parts = [
            slice(at, at + reward.settings.batch)
            for at in range(0, len(clips.prompts), reward.settings.batch)
        ]
        found[name] = torch.cat([reward.measure(_part(clips, part)) for part in parts]).float().cpu()
        if not torch.isfinite(found[name]).all():
            raise CriticError(f"the reward {name} gave NaN or infinite values: look at what it judges.")
    return found


def _part(clips: Clips, part: slice) -> Clips:
    if part.start == 0 and part.stop >= len(clips.prompts):
        return clips
    return Clips(
        latents=clips.latents[part], cond=clips.cond[part], prompts=clips.prompts[part], fps=clips.fps,
        latent_fps=clips.latent_fps, decode=lambda _: clips.frames[part],
    )  # fmt: skip
