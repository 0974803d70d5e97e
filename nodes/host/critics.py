"""Critics as ComfyUI loads them, and what they judge: IMAGE batches and LATENTs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...methods.critics import Critic, Judgement, MotionConsistency
from ...methods.lamo import KIND as PREDICTOR_KIND
from ...methods.lamo import load_predictor
from ...methods.video_models import SPACES, TOY
from ...methods.weights import WeightsError
from . import encoders, files, patching, spaces, wires
from .best_of_n import Candidate, Mark
from .latents import pooled_prompts

if TYPE_CHECKING:
    from ...encoders import Teacher

AUTOMATIC = "what the file is best for"
METHODS = {"causal surprise": "surprise", "trajectory geometry": "geometry", "motion consistency": "motion"}
"""Menu entry -> name of the critic."""


@dataclass(frozen=True, kw_only=True)
class PhysicsCritic:
    """Value of a PHYSICS_CRITIC wire."""

    name: str
    """Name of the file in the loader's menu."""
    critic: Critic
    teacher: Teacher | None = None
    """The encoder it looks through, on the CPU between uses."""
    patcher: comfy.model_patcher.ModelPatcher | None = None
    """The motion predictor under ComfyUI's memory management."""
    space: str = ""
    """Latent space of the predictor."""

    @property
    def reads(self) -> str:
        return self.critic.reads

    def covered(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, from the upper left corner, of the part of a picture that its maps stand for."""
        return (height, width) if self.teacher is None else self.teacher.covered(height, width)

    def judge(self, clip: Tensor, fps: float, cond: Tensor | None = None) -> Judgement:
        """Judges `B 3 T H W` frames or `B C T H W` latents (sampler's scaling) on ComfyUI's device.

        Raises CriticError.
        """
        device = torch.device("cpu")
        if self.patcher is not None:
            comfy.model_management.load_models_gpu([self.patcher])
            device = self.patcher.load_device
        with encoders.on_device(self.teacher) if self.teacher is not None else nullcontext():
            return self.critic.judge(clip.to(device), fps, None if cond is None else cond.to(device))


def critic_names() -> list[str]:
    """The loader's menu: encoders, then motion predictors."""
    return [*encoders.encoder_names(), *files.list_files(PREDICTOR_KIND)]


def is_predictor(name: str) -> bool:
    """Whether a name of the menu is a motion predictor.

    Raises WeightsError where the file is missing or unreadable.
    """
    return not name.startswith(f"{encoders.FOLDER}/") and files.file_info(name).kind == PREDICTOR_KIND


def check_critic(name: str, method: str) -> None:
    """Raises ValueError, in one sentence, where the file is missing or cannot serve the method."""
    if method != AUTOMATIC and method not in METHODS:
        raise WeightsError(f"method is {method!r}; it must be one of: {', '.join([AUTOMATIC, *METHODS])}.")
    chosen = METHODS.get(method)
    if is_predictor(name):
        if chosen not in (None, "motion"):
            raise WeightsError(
                f"{name} is a motion predictor: it judges by motion consistency, not by {method}."
            )
        return
    kind, path = encoders.find_encoder(name)
    if chosen == "motion":
        raise WeightsError(
            f"{name} is an encoder: motion consistency needs a motion predictor (models/latent_physics)."
        )
    if chosen == "surprise" and "vjepa2" not in (kind, model_type(path) if kind == "folder" else kind):
        raise WeightsError(
            f"{name} cannot predict: causal surprise needs V-JEPA 2; choose trajectory geometry."
        )


def model_type(path: Any) -> str:
    """`model_type` in the config.json beside a weights file; empty where there is none to read."""
    try:
        return str(
            json.loads(path.with_name("config.json").read_text(encoding="utf-8")).get("model_type", "")
        )
    except (OSError, ValueError, AttributeError):
        return ""


def load_critic(name: str, method: str, **surprise: Any) -> PhysicsCritic:
    """The critic of a name in the menu. surprise: settings of CausalSurprise.

    Raises ValueError, in one sentence.
    """
    from ...encoders.critics import critic_through
    from ...encoders.images import CLASSES, ImageEncoder

    check_critic(name, method)
    rate = surprise.get("rate")
    if is_predictor(name):
        import comfy.ops

        network, info = load_predictor(files.find_file(name), operations=comfy.ops.manual_cast)
        critic = MotionConsistency(network, lag=int(info.config["lag"]))
        return PhysicsCritic(
            name=name, critic=critic, patcher=patching.manage(network), space=info.latent_space
        )
    kind, path = encoders.find_encoder(name)
    if kind == "folder" and model_type(path) in CLASSES:
        teacher = ImageEncoder.from_source(str(path.parent))
    else:
        teacher = encoders.load_encoder(name)
    chosen = METHODS.get(method)
    predicts = chosen == "surprise" or (chosen is None and hasattr(teacher, "predicted"))
    settings = surprise if predicts else {"rate": rate}
    return PhysicsCritic(name=name, critic=critic_through(teacher, chosen, **settings), teacher=teacher)


# --- what is judged -----------------------------------------------------------------------------------------


def clips_of(images: Tensor, clips: int) -> Tensor:
    """IMAGE `N H W C` of several clips, one after another -> `B 3 T H W`.

    Raises ValueError for no whole clips.
    """
    check_clips(images, clips)
    return images[..., :3].reshape(clips, -1, *images.shape[1:3], 3).movedim(-1, 1).float()


def check_clips(images: Tensor, clips: int) -> None:
    """Raises ValueError where IMAGE `N H W C` is not that many clips."""
    if clips < 1 or len(images) % clips or len(images) < clips:
        raise ValueError(
            f"{len(images)} images are no whole number of frames of {clips} clips: set clips to how many "
            "there are."
        )


def check_batches(images: list[Tensor], latents: list[dict[str, Any] | None], clips: int) -> None:
    """Raises ValueError unless each batch of images is of `clips` videos, and its LATENT, if any, of as
    many."""
    if len(latents) != len(images):
        raise ValueError(
            f"{len(latents)} latents were given for {len(images)} batches of images: wire one each."
        )
    for batch, latent in zip(images, latents):
        check_clips(batch, clips)
        held = clips if latent is None else len(wires.video_in(latent))
        if held != clips:
            raise ValueError(
                f"the latent holds {held} videos and clips is {clips}: set clips to {held}, and wire the "
                "images that were decoded from it."
            )


def latent_fps(space: str, fps: float) -> float:
    """Latent frames per second of a video of `fps`. Raises ValueError where the space's rate is unknown."""
    known = TOY if space == TOY.name else SPACES.get(space)
    if known is None:
        raise ValueError(
            f"it is unknown how many frames a {space} latent frame stands for; choose a critic that reads "
            "frames."
        )
    return fps / known.frames.stride


def judge_wired(
    critic: PhysicsCritic,
    images: Tensor | None,
    latent: dict[str, Any] | None,
    clips: int,
    fps: float,
    positive: list[Any] | None,
) -> Judgement:
    """Judges what the critic reads of an IMAGE and a LATENT.

    Raises ValueError where that one is not wired.
    """
    if critic.reads == "latent":
        if latent is None:
            raise ValueError(f"{critic.name} judges latents: wire the sampler's output to latent.")
        video, rate = wires.finite_video(latent, "no plausibility").cpu(), latent_fps(critic.space, fps)
        inside = spaces.latent_format(critic.space).process_in(video)
        return critic.judge(inside, rate, pooled_prompts(positive, len(video)))
    if images is None:
        raise ValueError(f"{critic.name} judges images: wire the decoded video to images.")
    return critic.judge(clips_of(images, clips), fps)


class CandidateJudge:
    """Judges Best-of-N's candidates one by one: finished clips, and estimates in the middle of sampling."""

    def __init__(
        self, critic: PhysicsCritic, model: comfy.model_patcher.ModelPatcher, vae: Any, fps: float, cond: Any
    ) -> None:
        """Raises ValueError where the critic fits neither the model's latents nor, without a VAE,
        anything."""
        self.critic, self.model, self.vae, self.fps, self.reads = critic, model, vae, fps, critic.reads
        if self.reads == "frames" and vae is None:
            raise ValueError(
                f"{critic.name} judges frames: wire the VAE, or choose a motion predictor, which needs none."
            )
        space = spaces.latent_space(model)
        if self.reads == "latent" and critic.space != space:
            raise ValueError(
                f"{critic.name} was trained on {critic.space!r} latents, but this model's are {space!r}."
            )
        self.cond = cond

    def __call__(self, candidates: Sequence[Candidate], step: int, sigma: float) -> list[Mark]:
        marks = []
        for candidate in candidates:
            comfy.model_management.throw_exception_if_processing_interrupted()
            found = self._judge(candidate)
            marks.append(
                Mark(
                    step=step,
                    sigma=sigma,
                    plausibility=float(found.plausibility[0]),
                    motion=float(found.motion[0]),
                    parts={name: float(value[0]) for name, value in found.parts.items()},
                )
            )
        return marks

    def _judge(self, candidate: Candidate) -> Judgement:
        """An estimate is in the sampler's scaling, a finished LATENT in the wire's."""
        form = self.model.get_model_object("latent_format")
        if candidate.finished is not None:
            video = wires.video_in(candidate.finished).cpu().float()
            inside = form.process_in(video)
        else:
            video, inside = form.process_out(candidate.estimate), candidate.estimate
        if self.reads == "latent":
            return self.critic.judge(inside, latent_fps(self.critic.space, self.fps), self.cond)
        images = self.vae.decode(video)
        return self.critic.judge(clips_of(images.reshape(-1, *images.shape[-3:]), 1), self.fps)


def parse_contexts(text: str) -> tuple[int, ...]:
    """Numbers separated by commas. Raises ValueError, in one sentence, for anything else."""
    try:
        found = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(
            f"contexts is {text!r}; write numbers of frames separated by commas, such as 4, 8."
        ) from error
    if not found or any(context < 2 or context % 2 or context > 14 for context in found):
        raise ValueError(f"contexts is {text!r}; give even numbers from 2 to 14, frames of a window of 16.")
    return found


def candidate_seeds(seeds: list[int], count: int) -> list[int]:
    """A seed for each of `count` videos. Raises ValueError for a list of another length."""
    if len(seeds) == 1:
        return [(seeds[0] + number) % 2**64 for number in range(count)]
    if len(seeds) != count:
        raise ValueError(
            f"{len(seeds)} seeds were given for {count} videos: give one each, or the first one alone."
        )
    return list(seeds)


def ranking_title(critic: PhysicsCritic, count: int) -> str:
    """Subject of the table."""
    if count == 1:
        return f"{critic.name}, {critic.critic.name}: 1 candidate, so there was nothing to choose from"
    return f"{critic.name}, {critic.critic.name}: {count} candidates"
