"""`latent-physics toy-teachers`: small VideoMAE and V-JEPA 2 encoders (transformers' classes), trained on toy
clips alone.

They stand in for the real teachers wherever the toy world is used: same interfaces, seconds instead of
minutes.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....encoders import TOY_WEIGHTS, VideoMAETeacher, VJEPATeacher
from ....encoders.base import imagenet
from ....toyworld.canvas import FRAMES, SIZE
from ...console import ProgressLine, StopRequest, TrainingError
from ...loop.config import TrainerConfig
from ...loop.loop import train
from ...loop.task import Run, Task

PATCH, TUBELET = 8, 2
SEEN = FRAMES - 1
"""Frames an encoder sees: all but the first."""
GRID = (SEEN // TUBELET, SIZE // PATCH, SIZE // PATCH)


def usual_settings() -> TrainerConfig:
    """Sizes and rates for two cores."""
    return TrainerConfig(
        steps=1500, batch=8, learning_rate=1e-3, warmup=50, schedule="cosine", weight_decay=0.05,
        validate_every=250,
        save_every=250,
        validation_clips=4, tensorboard=False,
    )  # fmt: skip


@dataclass(kw_only=True)
class ToyTeachersConfig:
    """Trains the toy teachers (about 20 minutes each on two free cores)."""

    which: Literal["both", "videomae", "vjepa2"] = "both"
    """Teachers to train."""
    out: Path = Path("runs/toy-teachers")
    """Folder of the runs."""
    export: Path = TOY_WEIGHTS
    """Where toy_videomae.safetensors and toy_vjepa2.safetensors are written."""
    width: int = 128
    """Channels of both encoders."""
    layers: int = 6
    """Layers of both encoders."""
    mask: float = 0.85
    """Share of the tubes that VideoMAE does not see."""
    momentum: float = 0.996
    """EMA momentum of V-JEPA's target encoder."""
    wrong: float = 0.0
    """Share of the clips whose dynamics are corrupted; a teacher should know the right ones."""
    trainer: TrainerConfig = field(default_factory=usual_settings)
    """Settings of the training."""


class ToyClips(Task):
    """Drawn clips, a new batch for every number, the first frame left out as teachers never see it."""

    latent_space = "pixels"
    validation_count = 4

    def __init__(self, config: ToyTeachersConfig) -> None:
        self.config = config
        self.about = {"width": config.width, "layers": config.layers, "wrong": config.wrong}

    def clips(self, seed: int) -> Tensor:
        """`B 3 T H W` in [0, 1]."""
        from ....toyworld import mixture

        return mixture(self.config.trainer.batch, seed, self.config.wrong)[0][:, :, 1 : SEEN + 1].contiguous()

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips, one of each world where the batch is 8, and draws in [0, 1) that the module masks with."""
        return self.clips(1_000_000 + number), torch.rand(GRID[1] * GRID[2] + 1, generator=generator)

    def draw_validation(self, place: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.clips(place), torch.rand(GRID[1] * GRID[2] + 1, generator=generator)

    def state(self) -> dict[str, Tensor]:
        """V-JEPA's target encoder, which no optimiser touches."""
        return dict(self.module.target.named_parameters()) if isinstance(self.module, JEPAStudent) else {}

    def fingerprint(self) -> str:
        return f"toy clips, wrong {self.config.wrong:g}"


class MAEStudent(nn.Module):
    """VideoMAE's pre-training: tubes are hidden, their normalised pixels predicted (arXiv 2203.12602)."""

    def __init__(self, config: ToyTeachersConfig) -> None:
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEForPreTraining

        self.share = config.mask
        self.model = VideoMAEForPreTraining(
            VideoMAEConfig(
                image_size=SIZE, patch_size=PATCH, num_frames=SEEN, tubelet_size=TUBELET,
                hidden_size=config.width,
                num_hidden_layers=config.layers, num_attention_heads=config.width // 32,
                intermediate_size=4 * config.width,
                decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
                decoder_intermediate_size=256,
                norm_pix_loss=False, use_mean_pooling=False,
            )
        )  # fmt: skip

    def forward(self, clips: Tensor, draw: Tensor) -> dict[str, Tensor]:
        """Mean squared error over the hidden tubes."""
        tubes = draw[:-1].argsort().argsort() < round(self.share * (len(draw) - 1))
        mask = tubes.repeat(GRID[0]).expand(len(clips), -1)
        return {"reconstruction": self.model(imagenet(clips).transpose(1, 2), bool_masked_pos=mask).loss}


class JEPAStudent(nn.Module):
    """V-JEPA 2's pre-training, on the one task it is used for: the features of later frames from earlier ones
    (arXiv 2506.09985).

    The target is the moving average of the encoder on the whole clip, LayerNormed; the context is encoded
    alone.
    """

    def __init__(self, config: ToyTeachersConfig) -> None:
        super().__init__()
        from transformers import VJEPA2Config, VJEPA2Model

        heads = config.width // 32
        self.momentum = config.momentum
        self.model = VJEPA2Model(
            VJEPA2Config(
                crop_size=SIZE, patch_size=PATCH, frames_per_clip=SEEN, tubelet_size=TUBELET,
                hidden_size=config.width,
                num_hidden_layers=config.layers, num_attention_heads=heads, mlp_ratio=4,
                pred_hidden_size=config.width // 2,
                pred_num_hidden_layers=3, pred_num_attention_heads=max(1, heads // 2), pred_num_mask_tokens=2,
            )
        )  # fmt: skip
        self.target = copy.deepcopy(self.model.encoder).requires_grad_(False)

    def forward(self, clips: Tensor, draw: Tensor) -> dict[str, Tensor]:
        """Mean absolute error over the later frames' tokens."""
        if self.training:
            self.follow()
        clips = imagenet(clips).transpose(1, 2)
        context = 2 + int(draw[-1] * (GRID[0] - 4))
        border = context * GRID[1] * GRID[2]
        with torch.no_grad():
            whole = self.target(clips).last_hidden_state
            target = functional.layer_norm(whole, whole.shape[-1:])[:, border:]
        seen = self.model.encoder(clips[:, : context * TUBELET]).last_hidden_state
        ids = torch.arange(whole.shape[1], device=clips.device).expand(len(clips), -1)
        guess = self.model.predictor(
            seen, context_mask=[ids[:, :border]], target_mask=[ids[:, border:]]
        ).last_hidden_state
        return {"prediction": (guess - target).abs().mean()}

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the target towards the encoder."""
        for slow, fast in zip(self.target.parameters(), self.model.encoder.parameters()):
            slow.lerp_(fast, 1 - self.momentum)


def train_teacher(
    name: str, config: ToyTeachersConfig, stop: StopRequest, progress: ProgressLine
) -> Path | None:
    """Trains one teacher and writes its file; None where it was stopped. Raises TrainingError."""
    task = ToyClips(config)
    torch.manual_seed(config.trainer.seed)
    task.module = MAEStudent(config) if name == "videomae" else JEPAStudent(config)
    task.names = ("reconstruction",) if name == "videomae" else ("prediction",)
    task.about = {**task.about, "recipe": f"toy {name}"}
    run = Run(config=config.trainer, task=task, out=config.out / name)
    if train(run, stop, progress).stopped:
        return None
    path = config.export / f"toy_{name}.safetensors"
    recipe: dict[str, Any] = {"identity": f"toy {name}", "trainer": asdict(config.trainer), **task.about}
    teacher(task.module, name).save(path, recipe)
    return path


def teacher(module: nn.Module, name: str) -> VideoMAETeacher | VJEPATeacher:
    """The trained student as a teacher: VideoMAE without its decoder, V-JEPA whole."""
    if name == "vjepa2":
        return VJEPATeacher(module.model, "toy")
    from transformers import VideoMAEModel

    model = VideoMAEModel(module.model.config)
    state = {
        key.removeprefix("videomae."): value
        for key, value in module.model.state_dict().items()
        if key.startswith("videomae.")
    }
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        raise TrainingError(f"the pre-trained VideoMAE lacks {missing[0]!r}.")
    return VideoMAETeacher(model, "toy")
