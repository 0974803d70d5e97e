"""An iteration: groups of clips are sampled, judged and turned into advantages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....methods.critics import CriticError
from ....methods.policy import combine_rewards
from ...backbones import Backbone
from ...console import TrainingError
from ...loop.task import Paused
from ..companions import Prompts
from .rewards import Clips, Reward, measured
from .sampler import Rollout, Sampler, roll_out
from .settings import GrpoConfig

SPREADLESS = 1e-9
"""Difference of a group's rewards below which they count as equal."""


@dataclass(kw_only=True)
class Iteration:
    """Clips that one process learns from until the next iteration, on the device that
    `offload_samples_to_cpu` names."""

    number: int
    chosen: list[int]
    """Prompt of every clip."""
    clips: Tensor
    """`B C T H W`: finished latents."""
    first: int
    """First step of the window."""
    states: list[Tensor]
    """Latents at the window's steps and after its last, `B C T H W` each."""
    log_probabilities: list[Tensor]
    """Log-probabilities of the window's steps under the policy that sampled, `B` each."""
    advantages: Tensor
    """`B`."""
    row: dict[str, float]
    """Its row of the log."""


class Judges:
    """The rewards that are optimised and those that are watched, with the VAE they look through."""

    def __init__(
        self,
        backbone: Backbone,
        vae: Any,
        optimised: dict[str, Reward],
        watched: dict[str, Reward],
        fps: float,
    ) -> None:
        self.backbone, self.vae, self.fps = backbone, vae, fps
        self.optimised = optimised
        self.watched = {name: reward for name, reward in watched.items() if name not in optimised}
        self.all = self.optimised | self.watched
        self.weights = {name: reward.settings.weight for name, reward in optimised.items()}

    def clips(self, latents: Tensor, prompts: Prompts, chosen: Sequence[int]) -> Clips:
        """A batch as rewards see it. Its frames are decoded once, if any reward asks."""
        return Clips(
            latents=latents.float().cpu(), cond=prompts.pooled(chosen),
            prompts=[prompts.words[index] for index in chosen], fps=self.fps,
            latent_fps=self.fps / self.backbone.temporal_stride, decode=self.decode,
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        """Frames `B 3 T H W` on the CPU; the VAE is on the policy's device while it works."""
        self.backbone.vae = self.vae.to(self.backbone.device)
        try:
            return self.backbone.decode_latent(latents).cpu()
        finally:
            self.backbone.vae = None
            self.vae.cpu()

    def measure(self, clips: Clips) -> dict[str, Tensor]:
        """Raw measures by reward, `B K`. Raises CriticError."""
        return measured(self.all, clips)

    def scores(self, parts: Sequence[dict[str, Tensor]], group: int) -> dict[str, Tensor]:
        """Rewards `G K` by name, of the measures of whole groups in order."""
        joined = {name: torch.cat([part[name] for part in parts]) for name in self.all}
        return {name: self.all[name].score(value, group).view(-1, group) for name, value in joined.items()}


def seed_of(*numbers: int) -> int:
    """A seed for every tuple of numbers, unlike those of its neighbours."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def first_noise(shape: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """(noise `B C T H W`, each clip from its own seed; the generators, to go on drawing from)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators]), generators


class Collector:
    """Makes iterations. Every process samples whole groups, so a group's own mean needs no exchange."""

    def __init__(
        self, config: GrpoConfig, sampler: Sampler, judges: Judges, prompts: Prompts, shape: Sequence[int]
    ) -> None:
        """shape: `C T H W` of a latent."""
        self.config, self.sampler, self.judges = config, sampler, judges
        self.prompts, self.shape = prompts, shape
        self.accelerator: Any = None
        self.say: Callable[[str], None] = print

    def collect(self, number: int) -> Iteration:
        """The iteration of that number, a function of it and the weights alone. Raises as `agree` does."""
        config, rank = self.config, self.accelerator.process_index
        groups = config.unique_sample_num_per_epoch // self.accelerator.num_processes
        mine = range(rank * groups, (rank + 1) * groups)
        prompts = self.prompts_of(number)
        chosen = [prompts[group] for group in mine for _ in range(config.group_size)]
        seeds = [
            seed_of(config.trainer.seed, number, group, 0 if config.same_initial_noise else clip)
            for group in mine
            for clip in range(config.group_size)
        ]
        window = self.window(number)
        failure, rollouts, parts = None, [], []
        try:
            for at in range(0, len(chosen), config.trainer.batch):
                part = slice(at, at + config.trainer.batch)
                rollouts.append(self.sample(number, chosen[part], seeds[part], window, at))
                clips = self.judges.clips(rollouts[-1].clips, self.prompts, chosen[part])
                parts.append(self.judges.measure(clips))
        except (CriticError, Paused) as error:
            failure = error
        self.agree(failure)
        return self.made(number, chosen, window, rollouts, self.judges.scores(parts, config.group_size))

    def prompts_of(self, number: int) -> list[int]:
        """Prompts of an iteration's groups: a pass over all of them, shuffled, then another."""
        count, total = self.config.unique_sample_num_per_epoch, len(self.prompts.words)
        found = []
        for place in range(number * count, (number + 1) * count):
            turn, offset = divmod(place, total)
            seeded = torch.Generator().manual_seed(seed_of(self.config.trainer.seed, turn))
            found.append(int(torch.randperm(total, generator=seeded)[offset]))
        return found

    def window(self, number: int) -> range:
        """Steps that are stochastic in this iteration: neighbours, drawn within `sde_steps`; none for nft."""
        if self.config.algorithm == "nft":
            return range(0)
        first, last = self.config.window_range
        size, seed = self.config.num_sde_steps, seed_of(self.config.trainer.seed, number, -1)
        start = torch.randint(first, last - size + 2, (), generator=torch.Generator().manual_seed(seed))
        return range(int(start), int(start) + size)

    def sample(
        self, number: int, chosen: Sequence[int], seeds: Sequence[int], window: range, at: int
    ) -> Rollout:
        """A batch of clips. Clips that share their first noise draw the window's noise apart."""
        noise, generators = first_noise(self.shape, seeds)
        if self.config.same_initial_noise:
            rank, seed = self.accelerator.process_index, self.config.trainer.seed
            places = [seed_of(seed, number, rank, at + row, 1) for row in range(len(chosen))]
            generators = [torch.Generator().manual_seed(place) for place in places]
        keep = torch.device("cpu") if self.config.offload_samples_to_cpu else self.sampler.backbone.device
        with self.accelerator.autocast():
            return roll_out(self.sampler, noise, self.prompts.batch(chosen), window, generators, keep)

    def agree(self, failure: Exception | None) -> None:
        """Raises in every process if one of them failed: Paused, so that all save together, or TrainingError
        where a clip cannot be judged: the weights may be at fault then, and the last checkpoint is kept."""
        codes = torch.tensor([failure is not None, isinstance(failure, CriticError)], dtype=torch.float32)
        failed, unjudged = self.accelerator.reduce(codes.to(self.accelerator.device), "sum").tolist()
        if unjudged:
            raise TrainingError(str(failure or "another process could not judge its clips."))
        if failed:
            raise Paused(str(failure or "a reward failed in another process; the state is saved."))

    def made(
        self,
        number: int,
        chosen: list[int],
        window: range,
        rollouts: Sequence[Rollout],
        scores: dict[str, Tensor],
    ) -> Iteration:
        """Advantages and the row of the log."""
        config = self.config
        scores = {name: self.everywhere(value) for name, value in scores.items()}
        optimised = {name: scores[name] for name in self.judges.optimised}
        total = sum(self.judges.weights[name] * value for name, value in optimised.items())
        advantages = combine_rewards(
            optimised, self.judges.weights, config.advantage_aggregation,
            clamp=config.adv_clip_range, global_std=config.global_std,
        )  # fmt: skip
        equal = (total.amax(1) - total.amin(1)) <= SPREADLESS
        if equal.all():
            self.say(
                f"The rewards of every group are equal in iteration {number + 1}, so nothing is learned from "
                "it: use more noise, larger groups or another reward."
            )
        row = {"reward_avg": total.mean().item(), "zero_std_ratio": equal.float().mean().item()}
        row |= {f"reward_{name}": value.mean().item() for name, value in scores.items()}
        groups = len(chosen) // config.group_size
        rank = self.accelerator.process_index
        return Iteration(
            number=number, chosen=chosen, first=window.start, row=row,
            clips=torch.cat([rollout.clips.cpu() for rollout in rollouts]),
            states=[torch.cat(states) for states in zip(*(rollout.states for rollout in rollouts))],
            log_probabilities=[torch.cat(found) for found in zip(*(r.log_probabilities for r in rollouts))],
            advantages=advantages[rank * groups : (rank + 1) * groups].flatten(),
        )  # fmt: skip

    def everywhere(self, value: Tensor) -> Tensor:
        """Rewards `G K` of all processes, in the order of their groups."""
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.gather(value.to(self.accelerator.device).contiguous()).cpu()


def refuse_sharding(accelerator: Any) -> None:
    """Raises TrainingError where the transformer would be cut into shards: sampling calls it past them."""
    kind = str(accelerator.distributed_type)
    if "FSDP" in kind or "DEEPSPEED" in kind:
        raise TrainingError(
            "grpo samples with the transformer it trains, which FSDP and DeepSpeed would cut into shards: "
            "launch with training/recipes/ddp.yaml."
        )
