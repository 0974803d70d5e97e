"""One step of a recipe, counted: the trainer's own module, objectives and optimiser on fake tensors.

Depth is the one thing that is not counted whole: memory and work of a transformer grow by the same amount
with every block, so two shallow ones give the deep one's (`extrapolated`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...encoders.need import TeacherNeed
from ..backbones import Backbone
from ..backbones.first_frame import FirstFrame
from ..backbones.lora import attach
from ..data.batches import Batch
from ..loop.config import LoopConfig
from ..loop.optim import make_optimizer, trainable
from ..loop.optimizers import packed_state
from ..loop.task import ParameterGroup
from ..objectives import parse
from ..tasks.denoise import Student
from ..tasks.export import DTYPES
from .count import Counter, Work, counting, materialise, size_of
from .model import Model, clip_format

if TYPE_CHECKING:
    from ..tasks.finetune import FinetuneConfig

SHALLOW = (2, 3)
"""Numbers of blocks that are counted."""
TEACHERS = {
    "videomae": (768, 48, 2, 224, 16),
    "vjepa2": (1024, 0, 4, 256, 16),
    "toy_videomae": (128, 0, 2, 0, 4),
    "toy_vjepa2": (128, 0, 2, 64, 8),
    "toy_oracle": (64, 0, 2, 0, 8),
}
"""Name -> channels of the usual weights, pixels of a large clip under a feature, frames under one, side that
clips are brought to (0: their own), pixels under a feature at that size."""


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """Cost of one optimiser step; memory in bytes."""

    weights: float
    """Frozen weights, and those that learn."""
    gradients: float
    moments: float
    """The optimiser's state."""
    kept: float
    """Activations kept for the backward pass: with checkpointing each block's input."""
    rest: float
    """The largest of what comes and goes beside it: a block's recomputation, an objective."""
    updating: float
    """The largest of the optimiser's temporaries, when nothing is kept any more."""
    work: Work
    """Operations of one micro-batch, forward and backward."""
    update: Work
    """Operations of the optimiser's step."""
    frozen_block: float = 0.0
    """Bytes of one block's weights that do not learn."""

    @property
    def peak(self) -> float:
        """The step's peak memory."""
        return self.weights + self.gradients + self.moments + max(self.kept + self.rest, self.updating)


def count_step(
    config: FinetuneConfig, model: Model, layers: int | None = None, on_gpu: bool = True
) -> StepCount:
    """One step of `config` on `model`, of `layers` blocks where given: all of them are then counted."""
    if layers is None and model.layers > max(SHALLOW):
        few, more = (count_step(config, model, depth, on_gpu) for depth in SHALLOW)
        return extrapolated(few, more, model.layers)
    layers = layers or model.layers
    with torch.device("meta"):
        student, backbone = build_student(config, model, layers)
    with counting() as counter:
        if backbone.connector is not None:  # its words are made on the card, and its weights stay there
            materialise(backbone.connector)
        return _count(config, materialise(student), backbone, counter, on_gpu)


def extrapolated(few: StepCount, more: StepCount, layers: int) -> StepCount:
    """Cost of `layers` blocks, extrapolated from two shallow transformers."""
    steps, between = layers - SHALLOW[0], SHALLOW[1] - SHALLOW[0]
    found = {}
    for name in (field.name for field in fields(StepCount)):
        low, high = getattr(few, name), getattr(more, name)
        found[name] = low + (high + low * -1) * (steps / between)
    return StepCount(**found)


def build_student(config: FinetuneConfig, model: Model, layers: int) -> tuple[Student, Backbone]:
    """The trainer's module without values."""
    full = config.tune.mode == "full"
    backbone = model.build(layers, torch.float32 if full else DTYPES[config.weights])
    attach(backbone, config.tune, config.trainer.seed)
    if config.trainer.checkpointing:
        backbone.dit.enable_gradient_checkpointing()
    heads = backbone.dit.config
    words = [counted_words(text, layers) for text in config.objectives]
    needs = parse.needed_teachers(words)
    built = parse.build(
        words,
        width=heads.num_attention_heads * heads.attention_head_dim,
        blocks=layers,
        channels={need.key: TEACHERS[need.name][0] for need in needs},
    )
    student = Student(backbone, built)
    return student.train(), backbone


def counted_words(text: str, layers: int) -> str:
    """An objective as it is counted: M-TSA as TSA, which compares more; at a block that is there; and without
    a motion head, whose file need not be there yet."""
    kind, *pairs = text.split()
    values = dict(pair.split("=", 1) for pair in pairs)
    values.pop("motion_head", None)
    if kind == "mtsa":
        kind, _ = "tsa", values.pop("keep", None)
    settings = parse.KINDS[kind][0]
    if hasattr(settings, "block"):
        values["block"] = str(min(int(values.get("block", settings.block)), layers))
    return " ".join([kind, *(f"{key}={value}" for key, value in values.items())])


def _count(
    config: FinetuneConfig, student: Student, backbone: Backbone, counter: Counter, on_gpu: bool
) -> StepCount:
    """Weights, gradients, moments, forward, backward and update of one micro-batch, each by itself."""
    backbone.device = torch.device("cpu")
    learning = list(trainable(student).values())
    weights = counter.living
    # No second training loop: nothing is drawn, repeated or learned. The loop cannot be called here, as it
    # reads losses, which fake tensors do not have, and takes at once what is counted part by part.
    packed, trainer = packed_state(config.trainer.optimizer), config.trainer
    if packed is not None:  # steps like AdamW, whose moments are replaced below
        trainer = replace(trainer, optimizer=LoopConfig.optimizer, optimizer_args=[])
    optimizer = make_optimizer([ParameterGroup(parameters=learning, learning_rate=1e-4)], trainer)
    for group in optimizer.param_groups:
        # Torch's choice on a GPU, which takes temporaries for all at once; packed moments go one by one.
        group["foreach"] = on_gpu and packed is None
    for value in learning:
        value.grad = torch.zeros_like(value)
    gradients = counter.living - weights
    optimizer.step()
    moments = counter.living - weights - gradients
    if config.trainer.accumulate == 1:
        optimizer.zero_grad(set_to_none=True)  # one micro-batch's backward pass makes them anew
    batch = some_batch(config, backbone, student)
    t = backbone.sample_t(len(batch.names))
    before = counter.living
    counter.restart()
    precision = DTYPES.get({"bf16": "bfloat16", "fp16": "float16"}.get(config.trainer.precision, ""))
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        losses = student(batch, t, torch.randn_like(batch.latent))
    kept = counter.living - before
    total: Tensor = sum(losses.values())
    total.backward()
    del losses, total
    work = counter.work
    peak = counter.peak
    counter.restart()
    optimizer.step()
    ema = 4 * sum(value.numel() for value in learning) if config.trainer.ema else 0
    block: nn.Module = backbone.blocks[0]
    return StepCount(
        weights=weights + ema,
        gradients=gradients,
        moments=sum(packed.bytes_of(value.numel()) for value in learning) if packed else moments,
        kept=kept,
        rest=peak - weights - gradients - moments - kept,
        updating=counter.peak - weights - gradients - moments,
        work=work,
        update=counter.work,
        frozen_block=size_of(block, learning=False),
    )


def latent_shape(config: FinetuneConfig, backbone: Backbone) -> tuple[int, int, int]:
    """T H W of a clip's latent."""
    form = clip_format(config)
    frames = (form.frames - 1) // backbone.temporal_stride + 1
    return frames, form.height // backbone.spatial_stride, form.width // backbone.spatial_stride


def some_batch(config: FinetuneConfig, backbone: Backbone, student: Student) -> Batch:
    """A micro-batch of the recipe's clips."""
    count, form = config.trainer.batch, clip_format(config)
    needs = {need.key: need for objective in student.objectives.values() for need in objective.teachers}
    shape = (backbone.latent_channels, *latent_shape(config, backbone))
    shown = {name: torch.randn(count, *size) for name, size in backbone.first_shapes(shape).items()}
    masked = config.noise.mask_min_value is not None
    return Batch(
        names=[f"clip {number}" for number in range(count)],
        latent=torch.randn(count, *shape),
        first=FirstFrame(**shown) if shown else None,
        loss_mask=torch.rand(count, 1, *shape[1:]) if masked else None,
        tokens=torch.randn(count, backbone.text_length, backbone.cond_dim),
        mask=torch.ones(count, backbone.text_length, dtype=torch.bool),
        features={
            key: some_features(need, count, form.frames, form.height, form.width, backbone.temporal_stride)
            for key, need in needs.items()
        },
    )


def some_features(
    need: TeacherNeed, count: int, frames: int, height: int, width: int, stride: int
) -> dict[str, Tensor]:
    """A teacher's tensors for clips of a size (`data.features.features_of`)."""
    channels, *shape = feature_shape(need, frames, height, width, stride)
    found = {"features": torch.randn(count, channels, *shape)}
    if need.context:
        return found | {"exact_first": torch.tensor([round(need.window / stride * need.context)] * count)}
    return found | {"exact_saliency": torch.rand(count, *shape)}


def feature_shape(
    need: TeacherNeed, frames: int, height: int, width: int, stride: int
) -> tuple[int, int, int, int]:
    """C F H W of a teacher's features of one clip, by its usual weights' sizes."""
    channels, large, tubelet, side, patch = TEACHERS[need.name]
    if large and min(height, width) > side:
        rows, columns = height // large, width // large
    elif large or not side:
        rows, columns = height // patch, width // patch
    else:
        rows = columns = side // patch
    if need.context:  # changes between the steps after the first ones, which are only ever seen
        seen = round(need.window / stride * need.context)
        return channels, (frames - 1) // stride - seen - 1, rows, columns
    return channels, (frames - 1) // tubelet, rows, columns
