"""Best-of-N around any sampler: candidates pause at a step, are judged, and the better ones go on.

The state of a sampler cannot be saved: it lives in the local variables of a function that ComfyUI or another
pack wrote. But
all it computes follows from its noise, its seed and the denoiser's answers. So a candidate keeps the answers
it was given (on
the CPU). To go on, the same sampler starts again from the same noise and seed, receives the kept answers at
no cost, and meets
the network again at the first evaluation that has not been made. That holds for multistep and for stochastic
samplers alike,
and the clip is bit for bit that of an unbroken run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...methods.critics import gate_of_pool, rank
from . import wires

KEY = "latent_physics.best_of_n"
POST_CFG = "sampler_post_cfg_function"
ROW_BY_ROW = {
    f"sample_{name}"
    for name in (
        "euler",
        "heun",
        "dpm_2",
        "lms",
        "dpmpp_2m",
        "ipndm",
        "ipndm_v",
        "deis",
        "heunpp2",
        "unipc",
        "unipc_bh2",
    )
}
"""Samplers that draw no noise and compute every clip of a batch on its own, so that clips of several seeds
may share a run."""
REMEMBERS = "sample_ar_video"
"""The sampler whose model remembers earlier evaluations (its key-value caches), so that kept answers alone do
not bring a run back."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Verdict of a critic on one candidate at one moment."""

    step: int
    """Steps that had been taken."""
    sigma: float
    """Noise level at which the estimate was made that was judged; 0 for a finished clip."""
    plausibility: float
    motion: float
    parts: dict[str, float]
    gate: float = 0.0
    """Motion gate among the candidates that were judged with it."""

    @property
    def score(self) -> float:
        return self.plausibility * self.gate


@dataclass(kw_only=True, eq=False)
class Candidate:
    """One seed."""

    seed: int
    answers: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    """Results of the evaluations so far: the denoised estimate, and the one without the prompt where the
    sampler asked for it."""
    estimate: Tensor | None = None
    """The last denoised estimate `1 C T H W`, in the sampler's scaling, on the CPU."""
    outputs: tuple[dict[str, Any], dict[str, Any]] | None = None
    """LATENTs of a finished candidate: the clip and its last estimate, as SamplerCustomAdvanced gives
    them."""
    finished: dict[str, Any] | None = None
    """The one of both that is judged: the clip, or the last estimate where the sigmas end before 0 and the
    clip is still noise (the high-noise half of Wan 2.2)."""
    marks: list[Mark] = field(default_factory=list)


class Judge(Protocol):
    """Compares candidates at one moment."""

    reads: str
    """"frames" or "latent", as its critic does."""

    def __call__(self, candidates: Sequence[Candidate], step: int, sigma: float) -> list[Mark]:
        """A Mark each. Candidates are judged by `finished` where they have it, others by their estimate."""
        ...


class Paused(Exception):
    """Ends a sampler's run from inside its callback. Never leaves this module."""


def stops(steps: int, fractions: Sequence[float]) -> list[int]:
    """Steps after which the worse half is dropped: rising, each within the run. A fraction of 0 is none."""
    found = {min(max(1, round(fraction * steps)), steps - 1) for fraction in fractions if fraction > 0}
    return sorted(stop for stop in found if 0 < stop < steps)


def survivors(count: int, halvings: int) -> int:
    """Number of `count` candidates left after that many halvings; at least 1."""
    for _ in range(halvings):
        count = max(1, (count + 1) // 2)
    return count


def evaluations(count: int, steps: int, at: Sequence[int]) -> int:
    """Steps that all candidates take together when the worse half is dropped after each of the steps `at`."""
    taken, before = 0, 0
    for number, stop in enumerate([*at, steps]):
        taken += survivors(count, number) * (stop - before)
        before = stop
    return taken


class BestOfN:
    """One run of the node: the plain sampler's inputs, and what happens between its runs."""

    def __init__(
        self,
        noise: Any,
        guider: Any,
        sampler: Any,
        sigmas: Tensor,
        latent: dict[str, Any],
        *,
        batch: int,
        judge: Judge,
    ) -> None:
        """batch: the most candidates to sample at once; 1 where the sampler draws noise of its own or the
        latent is nested."""
        self.noise, self.guider, self.sampler, self.sigmas, self.latent = (
            noise,
            guider,
            sampler,
            sigmas,
            latent,
        )
        self.judge, self.steps = judge, len(sigmas) - 1
        self.ends_clean = bool((sigmas[-1:] == 0).all())
        self.name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
        nested = getattr(latent["samples"], "is_nested", False)
        alone = self.name not in ROW_BY_ROW or nested or _churns(sampler)
        self.batch = 1 if alone else batch
        self.done = 0
        model = guider.model_patcher
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def run(self, count: int, fractions: Sequence[float] = ()) -> list[Candidate]:
        """All candidates, best first; the dropped ones behind, the last dropped before the first dropped.

        Raises ValueError where the latent or the noise cannot give several candidates.
        """
        everyone = [Candidate(seed=(self.noise.seed + number) % 2**64) for number in range(count)]
        at = stops(self.steps, fractions) if count > 1 else []
        self._check(count, pauses=bool(at))
        self.bar = comfy.utils.ProgressBar(evaluations(count, self.steps, at))
        left, dropped = everyone, []
        for stop in [*at, self.steps]:
            self._advance(left, stop)
            left = self._ranked(left, stop)
            if stop < self.steps:
                keep = survivors(len(left), 1)
                dropped = left[keep:] + dropped
                left = left[:keep]
                for candidate in dropped:
                    candidate.answers.clear()
        return left + dropped

    def _check(self, count: int, pauses: bool) -> None:
        if count < 1:
            raise ValueError(f"candidates is {count}; it must be at least 1.")
        if self.steps < 1:
            raise ValueError("the sigmas hold no step: wire a scheduler with at least 1 step.")
        if pauses and self.name == REMEMBERS:
            raise ValueError(
                "Sampler AR Video keeps the blocks it has made in the model, which a pause would lose: set "
                "prune_first and prune_second to 0."
            )
        clips = wires.video_in(self.latent).shape[0]
        if clips != 1:
            raise ValueError(
                f"the latent holds {clips} clips: set its batch to 1, because candidates are made from seeds."
            )
        if count > 1 and torch.equal(*(wires.video_in({"samples": self._noise(seed)}) for seed in (0, 1))):
            raise ValueError(
                "the noise does not depend on its seed, so all candidates would be the same: wire "
                "RandomNoise."
            )

    def _noise(self, seed: int) -> Any:
        noise = copy.copy(self.noise)
        noise.seed = seed
        return noise.generate_noise(self.latent)

    def _advance(self, candidates: Sequence[Candidate], stop: int) -> None:
        """Takes every candidate to `stop`, in batches; a batch that does not fit the memory is halved, and
        so are later ones."""
        waiting = [
            candidate for candidate in candidates if candidate.outputs is None
        ]  # adaptive ones may end early
        while waiting:
            group = waiting[: self.batch]
            known = [len(candidate.answers) for candidate in group]
            try:
                self._sample(group, stop)
            except comfy.model_management.OOM_EXCEPTION:
                if len(group) == 1:
                    raise
                for candidate, count in zip(group, known):
                    del candidate.answers[count:]
                self.batch = len(group) // 2
                comfy.model_management.soft_empty_cache()
                continue
            waiting = waiting[len(group) :]

    def _sample(self, group: Sequence[Candidate], stop: int) -> None:
        """One run of the sampler for the candidates of a group, to its end or until it pauses."""
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        comfy.model_management.throw_exception_if_processing_interrupted()
        answers = Answers(group, keep=stop < self.steps)
        guider = _listening(self.guider, answers)
        shared = _GroupNoise(self, [candidate.seed for candidate in group])
        front = _Front(guider, lambda step, x0, whole: self._step(group, answers, step, x0, stop, whole))
        latent = dict(self.latent)
        if len(group) > 1:
            latent["samples"] = comfy.utils.repeat_to_batch_size(latent["samples"], len(group))
        try:
            found = SamplerCustomAdvanced.execute(shared, front, self.sampler, self.sigmas, latent).args
        except Paused:
            if hasattr(guider, "loaded_models"):  # as at the end of a run that is not ended early
                comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)
            return
        for row, candidate in enumerate(group):
            candidate.outputs = tuple(_row(output, row, len(group)) for output in found[:2])
            candidate.finished = candidate.outputs[0 if self.ends_clean else 1]
            candidate.answers.clear()

    def _step(
        self,
        group: Sequence[Candidate],
        answers: Answers,
        step: int,
        x0: Any,
        stop: int,
        whole: Callable[[], None],
    ) -> None:
        """After each step of a run: remembers the estimate, shows progress, ends the run where it is to
        pause."""
        video = wires.video_in({"samples": x0})
        if answers.live:
            self.done += len(group)
            preview = self.previewer.decode_latent_to_preview_image("JPEG", video) if self.previewer else None
            self.bar.update_absolute(self.done, preview=preview)
        if step + 1 >= min(stop, self.steps):
            for row, candidate in enumerate(group):
                candidate.estimate = video[row : row + 1].detach().to("cpu", torch.float32, copy=True)
        if stop < self.steps and step + 1 >= stop:
            raise Paused
        if step + 1 >= self.steps:
            whole()

    def _ranked(self, candidates: list[Candidate], stop: int) -> list[Candidate]:
        """The candidates, best first, each with a new mark."""
        sigma = 0.0 if stop >= self.steps and self.ends_clean else float(self.sigmas[stop - 1])
        marks = self.judge(candidates, stop, sigma)
        gate = gate_of_pool(torch.tensor([mark.motion for mark in marks]), self.judge.reads)
        for candidate, mark, part in zip(candidates, marks, gate.tolist()):
            candidate.marks.append(replace(mark, gate=part))
        order = rank(torch.tensor([mark.plausibility for mark in marks]), gate)
        return [candidates[number] for number in order]


class Answers:
    """Around a guider's denoiser during one run: gives the kept answers, then asks the network and keeps
    what it says."""

    def __init__(self, group: Sequence[Candidate], keep: bool) -> None:
        """group: candidates of the run, one a row, with equally many answers. keep: whether a later run
        will need them."""
        self.group, self.keep = group, keep
        self.known, self.asked = len(group[0].answers), 0

    @property
    def live(self) -> bool:
        """Whether the last answer came from the network."""
        return self.asked > self.known

    def __call__(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: Any = None
    ) -> Tensor:
        """A PREDICT_NOISE wrapper."""
        number, self.asked = self.asked, self.asked + 1
        ours = len(executor.class_obj.model_options.get(POST_CFG, []))
        asking = model_options.get(POST_CFG, [])[
            ours:
        ]  # CFG++ samplers listen for the estimate without the prompt
        if number < self.known:
            return self._kept(number, x, asking)
        heard: list[Tensor] = []

        def listen(args: dict[str, Any]) -> Tensor:
            heard.append(args["uncond_denoised"])
            return args["denoised"]

        if asking:
            model_options = {**model_options, POST_CFG: [*model_options[POST_CFG], listen]}
        answer = executor(x, timestep, model_options, seed)
        if self.keep:
            for row, candidate in enumerate(self.group):
                candidate.answers.append((_copy(answer, row), _copy(heard[0], row) if heard else None))
        return answer

    def _kept(self, number: int, x: Tensor, asking: Sequence[Callable[[dict[str, Any]], Tensor]]) -> Tensor:
        rows = [candidate.answers[number] for candidate in self.group]
        answer = torch.cat([denoised for denoised, _ in rows]).to(x.device)
        if asking:
            uncond = torch.cat([found for _, found in rows]).to(x.device)
            for function in asking:
                answer = function({"denoised": answer, "uncond_denoised": uncond})
        return answer


class _Front:
    """Stands in for a guider before SamplerCustomAdvanced: the same run, with our callback."""

    def __init__(self, guider: Any, step: Callable[[int, Any, Callable[[], None]], None]) -> None:
        self.guider, self.step, self.model_patcher = guider, step, guider.model_patcher

    def sample(self, *args: Any, callback: Callable[..., None] | None = None, **kwargs: Any) -> Any:
        def ours(step: int, x0: Any, x: Any, total: int) -> None:
            self.step(step, x0, lambda: callback(step, x0, x, total) if callback else None)

        return self.guider.sample(*args, callback=ours, **kwargs)


class _GroupNoise:
    """The NOISE of several seeds, one a row."""

    def __init__(self, run: BestOfN, seeds: Sequence[int]) -> None:
        self.run, self.seeds, self.seed = run, seeds, seeds[0]

    def generate_noise(self, latent: dict[str, Any]) -> Any:
        noise = copy.copy(self.run.noise)
        if len(self.seeds) == 1:
            noise.seed = self.seed
            return noise.generate_noise(latent)
        rows = []
        for seed in self.seeds:
            noise.seed = seed
            rows.append(noise.generate_noise({**latent, "samples": latent["samples"][:1]}))
        return torch.cat(rows)


def _listening(guider: Any, answers: Answers) -> Any:
    """A copy of the guider whose denoiser is asked through `answers`, before any other wrapper; the guider
    stays as it was."""
    guider = copy.copy(guider)
    guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    wrappers[kind] = {KEY: [answers], **wrappers.get(kind, {})}
    return guider


def _churns(sampler: Any) -> bool:
    """Whether a sampler that is deterministic by itself was told to add noise."""
    return any(getattr(sampler, "extra_options", {}).get(name, 0) for name in ("s_churn", "eta"))


def _copy(batch: Tensor, row: int) -> Tensor:
    return batch[row : row + 1].detach().to("cpu", copy=True)


def _row(output: dict[str, Any], row: int, rows: int) -> dict[str, Any]:
    """One clip of a LATENT."""
    if rows == 1:
        return output
    return {**output, "samples": output["samples"][row : row + 1]}
