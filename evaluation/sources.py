"""Sources of clips: a ComfyUI server with a graph, or a diffusers pipeline; both give an mp4 file."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .comfy import ClipFailed, ComfyUI, Progress, raise_failure, videos_of
from .errors import EvaluationError
from .graph import Graph, Inputs, arm_graph, describe, filled, graph_hash
from .manifest import digest
from .plan import Job, Plan
from .video import animation_fps, probe, read_frames, write_video

PREFIX = "latent_physics_evaluate"
"""Folder of the clips in a server's output folder."""
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Source of an arm's clips."""

    model: str
    lora: tuple[str, ...]
    corrections: tuple[str, ...]
    graph: str


class Source(Protocol):
    """Makes clips, one at a time."""

    name: str

    def origin(self, arm: str) -> Origin:
        """Origin of this arm's clips; the same in every source of one run."""

    def make(self, job: Job, job_digest: str, attempt: int, target: Path, progress: Progress) -> None:
        """Writes the clip to `target` (mp4). Raises ServerGone, ClipFailed, EvaluationError."""

    def ready(self) -> bool:
        """Whether it can work now."""


def job_digest(job: Job, origin: Origin) -> str:
    """Digest of everything that a clip depends on."""
    return digest(origin.graph, job.arm, job.prompt.words, job.prompt.image, job.run, job.index, job.seed)


class ComfySource:
    """One ComfyUI server."""

    def __init__(self, server: ComfyUI, plan: Plan, *, timeout: float = 7200.0) -> None:
        """`timeout`: seconds after which a clip counts as failed.

        Raises EvaluationError for arms that do not fit the graph.
        """
        self.server, self.timeout = server, timeout
        self.name = server.name
        self.inputs = Inputs.from_json(plan.inputs)
        self.graphs: dict[str, Graph] = {
            arm: arm_graph(dict(plan.graph), overrides, self.inputs) for arm, overrides in plan.arms.items()
        }
        self._uploaded: dict[str, str] = {}

    def origin(self, arm: str) -> Origin:
        model, lora, corrections = describe(self.graphs[arm])
        name = graph_hash(self.graphs[arm], self.inputs)
        return Origin(model=model, lora=lora, corrections=corrections, graph=name)

    def ready(self) -> bool:
        return self.server.alive()

    def make(self, job: Job, job_digest: str, attempt: int, target: Path, progress: Progress) -> None:
        prompt_id = self._queued(job, job_digest, attempt)
        entry = self.server.wait(prompt_id, progress, self.timeout)
        found = list(videos_of(entry, self.inputs.output))
        if len(found) != 1:
            what = f"wrote {len(found)} videos" if found else "wrote no video"
            raise ClipFailed(
                f"node {self.inputs.output} {what}; set its batch size to 1 and its format to a video's"
            )
        raw = target.with_name(target.name + "-raw" + Path(found[0]["filename"]).suffix.lower())
        try:
            self.server.download(found[0], raw)
            as_mp4(raw, target)
        finally:
            raw.unlink(missing_ok=True)

    def _queued(self, job: Job, job_digest: str, attempt: int) -> str:
        """Id of the clip's prompt; one that the server still has from a run that was killed is not queued
        again.
        """
        wanted = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job_digest}/{attempt}"))
        if wanted in self.server.waiting():
            return wanted
        entry = self.server.entry(wanted)
        if entry is not None:
            try:
                raise_failure(entry)
                if list(videos_of(entry, self.inputs.output)):
                    return wanted
            except ClipFailed:
                wanted = str(uuid.uuid4())  # it failed before: try again under another id
        image = self._picture(job.prompt.image)
        prefix = f"{PREFIX}/{job_digest}"
        graph = filled(
            self.graphs[job.arm],
            self.inputs,
            prompt=job.prompt.words,
            seed=job.seed,
            prefix=prefix,
            image=image,
        )
        return self.server.queue(graph, wanted)

    def _picture(self, path: str) -> str:
        if path and path not in self._uploaded:
            self._uploaded[path] = self.server.upload(Path(path))
        return self._uploaded.get(path, "")


def as_mp4(raw: Path, target: Path) -> None:
    """Moves an mp4 to `target`, encodes anything else. Raises ClipFailed for a broken video."""
    try:
        if raw.suffix == ".mp4":
            probe(raw)
            raw.replace(target)
            return
        still = raw.suffix in (".webp", ".gif")
        write_video(target, read_frames(raw), (animation_fps(raw) if still else probe(raw).fps) or 16.0)
    except EvaluationError as error:
        raise ClipFailed(str(error)) from error


class PipelineSource:
    """A diffusers pipeline in this process. `plan.pipeline`: source, dtype, device, fps, call (keyword
    arguments).
    """

    def __init__(self, plan: Plan, load: Callable[[Mapping[str, Any]], Any] | None = None) -> None:
        self.plan, self.name = plan, "diffusers"
        self.settings = dict(plan.pipeline)
        self._load = load or load_pipeline
        self._pipe: Any = None
        self._lora: str | None = None

    def origin(self, arm: str) -> Origin:
        arm_settings = dict(self.plan.arms[arm])
        lora = (str(arm_settings["lora"]),) if "lora" in arm_settings else ()
        name = digest(self.settings, arm_settings)
        return Origin(model=str(self.settings["source"]), lora=lora, corrections=(), graph=name)

    def ready(self) -> bool:
        return True

    def make(self, job: Job, job_digest: str, attempt: int, target: Path, progress: Progress) -> None:
        import torch

        if self._pipe is None:
            self._pipe = self._load(self.settings)
        overrides = dict(self.plan.arms[job.arm])
        self._use_lora(str(overrides.pop("lora", "")), float(overrides.pop("lora_strength", 1.0)))
        call = {**self.settings.get("call", {}), **overrides, "prompt": job.prompt.words, "output_type": "np"}
        if job.prompt.image:
            from PIL import Image

            call["image"] = Image.open(job.prompt.image).convert("RGB")
        steps = int(call.get("num_inference_steps", 50))

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress((step + 1) / steps)
            return tensors

        generator = torch.Generator("cpu").manual_seed(job.seed)
        try:
            frames = self._pipe(**call, generator=generator, callback_on_step_end=after_step).frames[0]
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                "the pipeline does not fit into GPU memory; lower size or frames in `call`."
            ) from error
        except TypeError as error:
            raise EvaluationError(
                f"the pipeline does not take these settings ({error}); see `call` and the arms."
            ) from error
        write_video(target, (frames * 255).round().astype("uint8"), float(self.settings["fps"]))

    def _use_lora(self, path: str, strength: float) -> None:
        wanted = f"{path}@{strength}" if path else None
        if wanted == self._lora:
            return
        if self._lora is not None:
            self._pipe.unload_lora_weights()
        try:
            if path:
                self._pipe.load_lora_weights(path, adapter_name="arm")
                self._pipe.set_adapters(["arm"], [strength])
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise EvaluationError(f"the LoRA {path} does not fit the pipeline ({reason:.200}).") from error
        self._lora = wanted


def load_pipeline(settings: Mapping[str, Any]) -> Any:
    """A diffusers pipeline from a folder, or a repository that the user named. Raises EvaluationError."""
    import torch

    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise EvaluationError(
            "a pipeline needs diffusers, which is not installed: pip install -e '.[train]'."
        ) from error
    dtype, device = settings.get("dtype", "bfloat16"), str(settings.get("device", "cuda"))
    if dtype not in DTYPES:
        raise EvaluationError(f"dtype is {dtype!r}; use {', '.join(DTYPES)}.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EvaluationError(f'device is {device!r}, and torch sees no GPU; write device = "cpu".')
    try:
        pipe = DiffusionPipeline.from_pretrained(
            settings["source"], torch_dtype=getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise EvaluationError(
            f"{settings['source']} is no pipeline that diffusers loads ({reason:.200})."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
