"""Reinforcement as a task of the one loop: an iteration of clips feeds the micro-batches of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....methods.critics import CriticError
from ....methods.policy import optimality
from ...console import TrainingError
from ...loop.optim import exchange, trainable
from ...loop.task import Task
from ..companions import Prompts
from .rollouts import Collector, Iteration, first_noise, seed_of
from .sampler import Sampler, roll_out
from .samples import write_sample
from .settings import GrpoConfig
from .student import HeldOut, Policy, Renoised, Transition

OFF_BY = 0.1
"""Share of the clip range by which rounding may move a ratio from 1 before the first update."""


class PolicyTask(Task):
    """Flow-GRPO (arXiv 2505.05470) or DiffusionNFT (arXiv 2509.16117) on a backbone."""

    live_draws, norm_name, may_change = True, "grad_norm", ("steps",)
    names = ("policy_loss", "kl_loss", "approx_kl", "clipfrac", "ratio_mean", "ratio_min", "ratio_max")
    shown = ("reward_avg",)

    def __init__(
        self,
        config: GrpoConfig,
        collector: Collector,
        held_out: Prompts | None,
        evaluator: Sampler,
        about: Mapping[str, Any],
    ) -> None:
        self.config, self.collector, self.held_out, self.evaluator = config, collector, held_out, evaluator
        self.about, self.judges = about, collector.judges
        backbone = collector.sampler.backbone
        self.latent_space, self.backbone = backbone.latent_space, backbone
        self.module = Policy(config, collector.sampler, self.evaluate)
        self.module.old_weights = self.as_sampled
        rewards = ["reward_avg", *(f"reward_{name}" for name in self.judges.all), "zero_std_ratio"]
        self.names = (*PolicyTask.names, *rewards)
        self.validation_names = tuple(f"eval_{name}" for name in rewards[:-1]) if held_out else ()
        self.pictures = {
            "curves.png": {
                "reward": ("reward_avg", "eval_reward_avg"),
                "watched": tuple(f"{k}reward_{name}" for name in self.judges.watched for k in ("", "eval_")),
                "policy loss": ("policy_loss",),
                "share clipped": ("clipfrac",),
            }
        }
        self.iteration: Iteration | None = None
        self.unchanged = True  # whether the policy is still the one that sampled
        self.filmed: list[tuple[str, Tensor]] = []
        """Captions and frames of held-out clips, until `show` writes them."""
        copies = config.algorithm == "nft" or config.gradient_step_per_epoch > 1
        weights = trainable(self.module) if copies else {}
        self.old = {name: value.detach().clone() for name, value in weights.items()}
        self.moved = torch.tensor(-1)  # the iteration for which `old` was made

    # --- what the loop asks for -----------------------------------------------------------------------------

    @property
    def validation_count(self) -> int:
        return 0 if self.held_out is None else math.ceil(len(self.held_out.words) / self.config.trainer.batch)

    def placed(self, accelerator: Any) -> None:
        self.accelerator = self.collector.accelerator = accelerator
        self.backbone.device = accelerator.device
        self.old = {name: value.to(accelerator.device) for name, value in self.old.items()}

    def weights(self, step: int) -> Mapping[str, float]:
        return {"policy_loss": 1.0, "kl_loss": self.config.kl_beta}

    def state(self) -> Mapping[str, Tensor]:
        """The policy that samples, where it is not the one that learns: a run that is resumed inside an
        iteration samples the same clips again."""
        return {**self.old, "moved": self.moved} if self.old else {}

    def fingerprint(self) -> str:
        return f"{seed_of(*self.collector.prompts.words):x}"

    def draw(self, number: int, generator: torch.Generator) -> tuple[Transition | Renoised]:
        micro = number // self.accelerator.num_processes
        step, place = divmod(micro, self.config.trainer.accumulate)
        self.collect(*divmod(step, self.config.gradient_step_per_epoch))
        batch, turns = self.config.trainer.batch, self.config.turns
        share = len(self.iteration.chosen) // self.config.gradient_step_per_epoch
        begin = step % self.config.gradient_step_per_epoch * share + place // turns * batch
        rows = slice(begin, begin + batch)
        if self.config.algorithm == "nft":
            return (self.renoised(rows, generator),)
        return (self.transition(rows, place % turns),)

    def derive(self, row: dict[str, float]) -> dict[str, float]:
        """Rewards of the iteration, and the extremes of the ratios instead of means."""
        ratios, self.module.ratios = self.collector.everywhere(torch.tensor(self.module.ratios)).tolist(), []
        extremes = {"ratio_min": min(ratios), "ratio_max": max(ratios)} if ratios else {}
        off = max((abs(1 - ratio) for ratio in ratios), default=0.0)
        if self.unchanged and off > max(OFF_BY * self.config.clip_range, 1e-6):
            self.collector.say(
                f"The probability ratio is off 1 by {off:.2g} before the first update of iteration "
                f"{self.iteration.number + 1}, so sampling and training disagree: use --precision no, or a "
                "wider --clip-range."
            )
        return row | extremes | self.iteration.row

    def metrics(self, sums: Mapping[str, float], count: int) -> dict[str, float]:
        clips = sums["clips"]
        return {f"eval_{name}": value / clips for name, value in sums.items() if name != "clips"}

    def score(self, found: Mapping[str, float]) -> float | None:
        return -found["eval_reward_avg"] if "eval_reward_avg" in found else None

    def show(self, step: int, folder: Path | None) -> None:
        filmed, self.filmed = self.filmed, []
        if folder is not None:
            for number, (caption, video) in enumerate(filmed):
                path = folder / "samples" / f"{step:06}-{number}.mp4"
                write_sample(path, video, caption, self.judges.fps)

    # --- iterations -----------------------------------------------------------------------------------------

    def collect(self, number: int, update: int) -> None:
        """Samples the iteration, unless it is there. `update`: steps that it has been used for."""
        self.unchanged = update == 0
        if self.iteration is not None and self.iteration.number == number:
            return
        if self.old and int(self.moved) != number:
            kept = self.config.nft_decay if self.config.algorithm == "nft" and number else 0.0
            for name, value in trainable(self.module).items():
                self.old[name].lerp_(value.detach(), 1 - kept)
            self.moved.fill_(number)
        self.iteration = None  # its latents make room
        with self.as_sampled():
            self.iteration = self.collector.collect(number)
        self.module.teaches = bool(self.iteration.row["zero_std_ratio"] < 1 or self.config.kl_beta)

    @contextmanager
    def as_sampled(self) -> Any:
        """The weights of the policy that samples, for a while."""
        if self.old:
            exchange(self.old, trainable(self.module))
        try:
            yield
        finally:
            if self.old:
                exchange(self.old, trainable(self.module))

    def transition(self, rows: slice, turn: int) -> Transition:
        """A step of the window, of some of the iteration's clips."""
        made = self.iteration
        tokens, mask = self.collector.prompts.batch(made.chosen[rows])
        return Transition(
            x=made.states[turn][rows], after=made.states[turn + 1][rows], index=made.first + turn,
            old=made.log_probabilities[turn][rows], advantage=made.advantages[rows], tokens=tokens, mask=mask,
        )  # fmt: skip

    def renoised(self, rows: slice, generator: torch.Generator) -> Renoised:
        """Some of the iteration's clips at times drawn anew."""
        made = self.iteration
        tokens, mask = self.collector.prompts.batch(made.chosen[rows])
        clean = made.clips[rows]
        return Renoised(
            clean=clean, eps=torch.randn(clean.shape, generator=generator),
            t=self.backbone.sample_t(len(clean), generator),
            good=optimality(made.advantages[rows], self.config.adv_clip_range), tokens=tokens, mask=mask,
        )  # fmt: skip

    # --- held-out prompts -----------------------------------------------------------------------------------

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[HeldOut]:
        """A batch of held-out prompts; each has its own noise, the same every time."""
        batch = self.config.trainer.batch
        chosen = list(range(len(self.held_out.words)))[place * batch : (place + 1) * batch]
        seeds = [seed_of(self.config.trainer.seed, -2, index) for index in chosen]
        noise, _ = first_noise(self.collector.shape, seeds)
        tokens, mask = self.held_out.batch(chosen)
        return (HeldOut(noise=noise, chosen=chosen, tokens=tokens, mask=mask),)

    @torch.no_grad()
    def evaluate(self, batch: HeldOut) -> dict[str, Tensor]:
        """Sums of rewards over a batch, by an ODE sampler. Raises TrainingError for an unjudgeable clip."""
        keep = torch.device("cpu")
        found = roll_out(self.evaluator, batch.noise, (batch.tokens, batch.mask), range(0), [], keep)
        clips = self.judges.clips(found.clips, self.held_out, batch.chosen)
        try:
            scores = self.judges.scores([self.judges.measure(clips)], 1)
        except CriticError as error:
            raise TrainingError(str(error)) from error
        self.film(batch.chosen, clips, scores)
        total = sum(self.judges.weights[name] * scores[name] for name in self.judges.optimised)
        sums = {"reward_avg": total.sum()} | {f"reward_{name}": value.sum() for name, value in scores.items()}
        sums["clips"] = torch.tensor(float(len(batch.chosen)))
        return {name: value.to(self.accelerator.device) for name, value in sums.items()}

    def film(self, chosen: Sequence[int], clips: Any, scores: Mapping[str, Tensor]) -> None:
        """Keeps the first held-out clips for `show`."""
        for row, index in enumerate(chosen):
            if index < self.config.samples:
                told = ", ".join(f"{name} {value[row].item():.3f}" for name, value in scores.items())
                self.filmed.append((f"{clips.prompts[row]}\n{told}", clips.frames[row]))
