"""`latent-physics plan`: what a recipe takes on a card, and what would make it fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..console import TrainingError
from ..data.format import format_of
from ..objectives import parse
from .cards import CARDS, GIB, LINK, REACHED, Card, find_card
from .count import Work
from .model import Model, clip_format, find_model
from .step import StepCount, count_step, feature_shape

if TYPE_CHECKING:
    from ..tasks.finetune import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's step on one kind of model."""

    step: StepCount
    steps: int
    accumulate: int
    fetched: float = 0.0
    """Bytes of swapped blocks that come to the card in a micro-batch."""

    @property
    def peak(self) -> float:
        """Bytes of the run's tensors at the step's peak."""
        return self.step.peak

    def seconds(self, card: Card) -> float:
        """Seconds of one optimiser step on a card."""
        work = self.step.work * self.accumulate + self.step.update
        seconds = work.seconds(card.tflops * 1e12 * REACHED, card.gbs * 1e9 * REACHED)
        return seconds + self.accumulate * self.fetched / LINK

    def hours(self, card: Card) -> float:
        """Hours of the whole run on one card."""
        return self.steps * self.seconds(card) / 3600

    def least_hours(self, card: Card) -> float:
        """Hours of the products and of what is fetched alone: what no compiler can fuse away."""
        alone = replace(self.step, work=Work(self.step.work.operations), update=Work())
        return replace(self, step=alone).hours(card)

    def fits(self, card: Card) -> bool:
        """Whether the step's peak fits the card's memory."""
        return self.peak <= card.room


def make_plan(config: FinetuneConfig, model: Model | None = None) -> Plan:
    """Counts one step of a recipe. Raises TrainingError for a model whose sizes are not known."""
    model = model or find_model(config)
    step = count_step(config, model)
    if config.fp8_storage or config.quantize:
        step = with_float8(step, config, model)
    swapped = min(config.blocks_to_swap, model.layers) * step.frozen_block
    if swapped:
        step = replace(step, weights=step.weights - swapped, rest=step.rest + step.frozen_block)
    # Once in the forward pass, and once for the block that is made again.
    return Plan(
        step=step, steps=config.trainer.steps, accumulate=config.trainer.accumulate, fetched=2 * swapped
    )


def with_float8(step: StepCount, config: FinetuneConfig, model: Model) -> StepCount:
    """A step whose blocks' frozen weights are kept in float8 (diffusers' layerwise casting).

    A layer is cast back where it is used, and the backward pass keeps the cast weights: with checkpointing
    those of one block at a time, without it those of all.
    """
    held = model.layers * step.frozen_block
    casts = step.frozen_block if config.trainer.checkpointing else held
    width = 4 if config.weights == "float32" else 2
    return replace(
        step,
        weights=step.weights - held * (1 - 1 / width),
        rest=step.rest + casts,
        frozen_block=step.frozen_block / width,
    )


def feature_bytes(config: FinetuneConfig) -> int:
    """Bytes on disk of one clip's features of all teachers, in half precision."""
    form, found = clip_format(config), 0
    for need in parse.needed_teachers(config.objectives):
        channels, frames, rows, columns = feature_shape(need, form.frames, form.height, form.width, 4)
        found += frames * rows * columns * (2 * channels + (0 if need.context else 4))
    return found


# -- what would make it fit ----------------------------------------------------------------------------------


def _checkpoint(config: FinetuneConfig) -> None:
    config.trainer.checkpointing = True


def _half(config: FinetuneConfig) -> None:
    if config.tune.mode == "lora":
        config.weights, config.trainer.precision = "bfloat16", "bf16"


def _one_clip(config: FinetuneConfig) -> None:
    trainer = config.trainer
    trainer.batch, trainer.accumulate = 1, trainer.batch * trainer.accumulate


def _lora(config: FinetuneConfig) -> None:
    config.tune.mode, config.weights, config.trainer.precision = "lora", "bfloat16", "bf16"


def _float8(config: FinetuneConfig) -> None:
    config.fp8_storage = config.tune.mode == "lora"


def _swap(config: FinetuneConfig) -> None:
    if config.tune.mode == "lora" and config.trainer.checkpointing:
        config.blocks_to_swap = find_model(config).layers


def _shorter(config: FinetuneConfig) -> None:
    config.frames = (clip_format(config).frames - 1) // 8 * 4 + 1


def _smaller(config: FinetuneConfig) -> None:
    form = clip_format(config)
    config.width, config.height = (round(side * 0.75 / 16) * 16 for side in (form.width, form.height))


Change = tuple[Callable[["FinetuneConfig"], str], Callable[["FinetuneConfig"], None]]
CHANGES: tuple[Change, ...] = (
    (lambda config: "--checkpointing", _checkpoint),
    (lambda config: "--weights bfloat16 --precision bf16", _half),
    (lambda config: f"--batch 1 --accumulate {config.trainer.accumulate}", _one_clip),
    (lambda config: "--mode lora --weights bfloat16 --precision bf16", _lora),
    (lambda config: "--fp8-storage", _float8),
    (lambda config: f"--blocks-to-swap {config.blocks_to_swap}", _swap),
    (lambda config: f"--frames {config.frames}", _shorter),
    (lambda config: f"--width {config.width} --height {config.height}", _smaller),
)
"""Options and what they change, from what costs least to what costs most; each is added to those before."""


def remedies(config: FinetuneConfig, card: Card) -> Iterator[tuple[str, Plan]]:
    """Options that lessen the memory, each with the plan of all so far, until it fits the card or there is
    none left."""
    config, model = copy.deepcopy(config), find_model(config)
    best = make_plan(config, model).peak
    for words, change in CHANGES:
        changed = copy.deepcopy(config)
        change(changed)
        if changed == config or not possible(changed):
            continue
        plan = make_plan(changed, model)
        if plan.peak >= best:
            continue
        config, best = changed, plan.peak
        yield words(changed), plan
        if plan.fits(card):
            return


def possible(config: FinetuneConfig) -> bool:
    """Whether clips can be cached in the format."""
    from ..data.format import CacheConfig

    try:
        form = clip_format(config)
        format_of(CacheConfig(out=config.out, backbone=config.backbone, **form.__dict__))
    except TrainingError:
        return False
    return True


# -- words ---------------------------------------------------------------------------------------------------


def parts(step: StepCount, config: FinetuneConfig) -> list[tuple[str, float]]:
    """A step's memory by what holds it."""
    checkpointed = config.trainer.checkpointing
    return [
        ("weights", step.weights),
        ("gradients", step.gradients),
        ("optimiser's moments", step.moments),
        ("inputs of the checkpointed blocks" if checkpointed else "activations", step.kept),
        ("one block made again, objectives, temporaries" if checkpointed else "temporaries", step.rest),
        ("optimiser's temporaries, later", step.updating),
    ]


def describe(config: FinetuneConfig, gpu: str | None = None) -> Iterator[str]:
    """The lines that the command prints. Raises TrainingError."""
    card = find_card(gpu) if gpu else None
    model, form = find_model(config), clip_format(config)
    plan = make_plan(config, model)
    name = config.recipe or config.backbone
    size = f"{form.frames} frames of {form.width}x{form.height}"
    yield f"{name}: {model.layers} blocks, {size}, batch {config.trainer.batch} x {plan.accumulate}."
    for words, size in parts(plan.step, config):
        yield f"  {size / GIB:7.2f} GiB  {words}"
    yield f"  {plan.peak / GIB:7.2f} GiB  in all, beside CUDA's own memory"
    if plan.fetched:
        without = make_plan(replace(config, blocks_to_swap=0), model).peak
        yield (
            f"  {without / GIB:7.2f} GiB  without --blocks-to-swap, which brings "
            f"{plan.fetched / GIB:.1f} GiB to the card a micro-batch"
        )
    yield (
        f"  {plan.step.work.operations:.3g} operations and {plan.step.work.moved / GIB:.0f} GiB moved a "
        f"micro-batch"
    )
    if kept := feature_bytes(config):
        yield f"  {kept / 2**20:.1f} MiB of teachers' features a clip, {kept * 1000 / GIB:.1f} GiB for 1000"
    yield ""
    yield f"{'gpu':<12} {'GiB':>4} {'fits':>5} {'s/step':>8} {f'hours of {plan.steps} steps':>20}"
    for each in [card] if card else CARDS:
        fits = "yes" if plan.fits(each) else "no"
        yield (
            f"{each.name:<12} {each.gib:>4} {fits:>5} {plan.seconds(each):>8.1f} {plan.hours(each):>20.1f}"
        )
    if config.compile:
        each = card or find_card("4090")
        yield (
            f"--compile {config.compile}: counted without it. Fused operators move less, so hours lie between "
            f"{plan.least_hours(each):.1f} (products alone) and {plan.hours(each):.1f} on a {each.name}; "
            f"memory is at most that above."
        )
    if card and not plan.fits(card):
        yield from advice(config, card)


def advice(config: FinetuneConfig, card: Card) -> Iterator[str]:
    """Lines of what would make a run fit a card."""
    yield f"\nTo fit {card.gib} GiB, add in this order:"
    plan = None
    for words, plan in remedies(config, card):
        yield f"  {words:<48} {plan.peak / GIB:6.1f} GiB, {plan.hours(card):.1f} hours"
    if plan is None or not plan.fits(card):
        yield "  and no more is known that would; use a larger card or a smaller model."
