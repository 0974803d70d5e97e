"""Critic nodes: load a judge of physical plausibility, judge clips, keep the most plausible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.critics import gate_of_pool, rank
from .host import encoders, files
from .host.critics import (
    AUTOMATIC,
    METHODS,
    PhysicsCritic,
    candidate_seeds,
    check_batches,
    check_critic,
    critic_names,
    is_predictor,
    judge_wired,
    load_critic,
    parse_contexts,
    ranking_title,
)
from .views import figures, ranking

CATEGORY = "latent physics/critics"
PhysicsCriticType = io.Custom("PHYSICS_CRITIC")
NO_FPS = "fps is 0: set it to the video's own frames per second, which a critic needs and does not guess."


def fps_input() -> io.Float.Input:
    return io.Float.Input(
        "fps",
        default=0.0,
        min=0.0,
        max=240.0,
        step=0.1,
        tooltip="The video's own frames per second. It must be set: at a wrong rate motion looks too fast "
        "or slow.",
    )


def fps_is_set(fps: float | None) -> bool | str:
    """True, or the sentence for a rate that was left at 0; None is a rate that comes from another node."""
    return True if fps is None or fps > 0 else NO_FPS


class LoadPhysicsCritic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLoadPhysicsCritic",
            display_name="Load Physics Critic",
            category=CATEGORY,
            description="Loads a judge of physical plausibility: V-JEPA 2 (causal surprise), DINOv2, "
            "DINOv3 or VideoMAE "
            "(trajectory geometry), or a LaMo motion predictor (motion consistency, on latents). Downloads "
            "nothing.",
            search_aliases=["v-jepa", "dino", "verifier", "reward", "best of n", "plausibility"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=critic_names(),
                    tooltip="An encoder in models/video_encoders (a folder from the model hub, with its "
                    "config.json), or a "
                    "file in models/latent_physics. Names that begin with toy/ come with the pack, for the "
                    "toy world.",
                ),
                io.Combo.Input(
                    "method",
                    options=[AUTOMATIC, *METHODS],
                    tooltip="Way of judging. Causal surprise needs V-JEPA 2; trajectory geometry any "
                    "encoder; motion "
                    "consistency a motion predictor. The help page says which to trust for what.",
                ),
                io.Float.Input(
                    "rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.5,
                    tooltip="Frames per second at which the critic looks; faster videos are thinned out to "
                    "it. 0 looks at "
                    "every frame.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "distance",
                    options=["cosine", "l1"],
                    tooltip="Causal surprise: how expected and seen features are compared, over the "
                    "feature axis.",
                    advanced=True,
                ),
                io.String.Input(
                    "contexts",
                    default="8",
                    tooltip="Causal surprise: how many of a window's 16 frames are seen before the rest is "
                    "expected; several "
                    "numbers separated by commas are averaged.",
                    advanced=True,
                ),
                io.Int.Input(
                    "stride",
                    default=2,
                    min=2,
                    max=64,
                    step=2,
                    tooltip="Causal surprise: frames from one window to the next. More is faster and "
                    "coarser.",
                    advanced=True,
                ),
            ],
            outputs=[
                PhysicsCriticType.Output(
                    display_name="critic", tooltip="The judge, for the other critic nodes."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None, method: str | None, contexts: str | None) -> bool | str:
        try:  # None: from another node, in a moment
            if name is not None and method is not None:
                check_critic(name, method)
            if contexts is not None:
                parse_contexts(contexts)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **settings: Any) -> str:
        return files.state_of(
            name,
            lambda name: files.find_file(name) if is_predictor(name) else encoders.find_encoder(name)[1],
        )

    @classmethod
    def execute(
        cls,
        name: str,
        method: str,
        rate: float = 0.0,
        distance: str = "cosine",
        contexts: str = "8",
        stride: int = 2,
    ) -> io.NodeOutput:
        settings = {
            "rate": rate or None,
            "distance": distance,
            "contexts": parse_contexts(contexts),
            "stride": stride,
        }
        with torch.inference_mode(False):
            return io.NodeOutput(load_critic(name, method, **settings))


class PhysicsCriticNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsPhysicsCritic",
            display_name="Physics Critic",
            category=CATEGORY,
            description="Judges how physically plausible videos are: one score, a curve over time, and "
            "heat where it looks "
            "wrong. A still video scores 0, because stillness is perfectly predictable.",
            search_aliases=["plausibility", "surprise", "score", "reward"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                PhysicsCriticType.Input("critic", tooltip="From Load Physics Critic."),
                fps_input(),
                io.Int.Input(
                    "clips",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Number of videos in the batch of images, one after another. A latent knows "
                    "its own.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the hottest place over the video.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded videos. Motion consistency needs them for the overlay only.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampler's output, for motion consistency, which judges latents.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The prompt of the videos, for motion consistency. Others do not read it.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="score",
                    tooltip="plausibility x gate of the first video, 0 to 1; higher is better.",
                ),
                io.Float.Output(
                    display_name="plausibility", tooltip="Curve of the first video, before the motion gate."
                ),
                io.Float.Output(
                    display_name="gate", tooltip="Motion gate of the first video: 0 where it stands still."
                ),
                io.Image.Output(
                    display_name="curve", tooltip="Implausibility over time, one line per video."
                ),
                io.Image.Output(
                    display_name="overlay", tooltip="The videos under heat where they look wrong."
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="Scores, gates and raw parts of every video, a JSON object a line.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, fps: float | None = None) -> bool | str:
        return fps_is_set(fps)

    @classmethod
    def execute(
        cls,
        critic: PhysicsCritic,
        fps: float,
        clips: int = 1,
        opacity: float = 0.7,
        images: Tensor | None = None,
        latent: dict[str, Any] | None = None,
        positive: list[Any] | None = None,
    ) -> io.NodeOutput:
        found = judge_wired(critic, images, latent, clips, fps, positive)
        plot = figures.plot([ranking.curve_panel(found, critic.critic.name)])
        if images is None:
            shown = figures.heat_frames(figures.unit_range(found.maps).flatten(0, 1))
        elif len(images) % len(found.maps):
            raise ValueError(
                f"{len(images)} images do not belong to a latent of {len(found.maps)} clips: wire its "
                "decoded video."
            )
        else:
            shown = ranking.judged_overlay(images, found, fps, opacity, critic.covered(*images.shape[1:3]))
        first = (float(found.score[0]), float(found.plausibility[0]), float(found.gate[0]))
        table = ranking.json_lines(ranking.judgement_rows(found))
        return io.NodeOutput(*first, plot, shown, table, ui=figures.preview_image(plot, cls))


class KeepMostPlausible(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsKeepMostPlausible",
            display_name="Keep Most Plausible",
            category=CATEGORY,
            description="Ranks the videos of one prompt by a physics critic and keeps the best. Videos "
            "that stand (nearly) "
            "still beside the others never win.",
            search_aliases=["best of n", "rank", "select", "plausibility"],
            is_output_node=True,
            has_intermediate_output=True,
            is_input_list=True,
            inputs=[
                PhysicsCriticType.Input("critic", tooltip="From Load Physics Critic."),
                io.Image.Input(
                    "images", tooltip="The videos: a batch of several, one after another, or a list of them."
                ),
                fps_input(),
                io.Int.Input(
                    "clips",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="Number of videos in each batch of images, one after another.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Seed of the first video; each further one counts 1 up. A list of seeds, one a "
                    "video, is "
                    "taken as it is.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="Goes into the table beside every candidate.",
                ),
                io.Boolean.Input(
                    "keep_all",
                    default=False,
                    tooltip="Also hand on the other videos, best first, on the output named ranked.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The videos' latents, for motion consistency, which judges latents.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The most plausible video."),
                io.Int.Output(display_name="seed", tooltip="Its seed, to render it again."),
                io.Int.Output(display_name="number", tooltip="Its place among the videos given, from 1."),
                io.Image.Output(
                    display_name="ranking",
                    tooltip="All candidates with their scores, best first, as a picture.",
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="A JSON object a line, best first: prompt, seed, rank, score, gate and raw "
                    "parts.",
                ),
                io.Image.Output(
                    display_name="ranked",
                    is_output_list=True,
                    tooltip="The best video, or with keep_all all of them, best first.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, fps: Sequence[float | None] = ()) -> bool | str:
        """ComfyUI hands lists over here too, as this node takes its inputs as lists."""
        return all(fps_is_set(rate) is True for rate in fps) or NO_FPS

    @classmethod
    def execute(
        cls,
        critic: list[PhysicsCritic],
        images: list[Tensor],
        fps: list[float],
        clips: list[int],
        seed: list[int],
        prompt: list[str],
        keep_all: list[bool],
        latent: list[dict[str, Any]] | None = None,
    ) -> io.NodeOutput:
        latents = latent or [None] * len(images)
        check_batches(images, latents, clips[0])
        found = [
            judge_wired(critic[0], batch, one, clips[0], fps[0], None) for batch, one in zip(images, latents)
        ]
        videos = [video for batch in images for video in batch.reshape(clips[0], -1, *batch.shape[1:])]
        seeds = candidate_seeds(seed, len(videos))
        rows = [row for judgement in found for row in ranking.judgement_rows(judgement)]
        gate = gate_of_pool(torch.tensor([row["motion"] for row in rows]), critic[0].reads)
        order = rank(torch.tensor([row["plausibility"] for row in rows]), gate)
        for row, part in zip(rows, gate.tolist()):
            row.update(gate=round(part, 6), score=round(part * row["plausibility"], 6))
        table = [
            {"prompt": prompt[0], "seed": seeds[number], "rank": place, "number": number + 1, **rows[number]}
            for place, number in enumerate(order, start=1)
        ]
        picture = ranking.ranking_table(table, ranking_title(critic[0], len(videos)))
        ranked = [videos[number] for number in (order if keep_all[0] else order[:1])]
        best = order[0]
        return io.NodeOutput(
            videos[best],
            seeds[best],
            best + 1,
            picture,
            ranking.json_lines(table),
            ranked,
            ui=figures.preview_image(picture, cls),
        )


# --- what the nodes share -----------------------------------------------------------------------------------


NODES = [LoadPhysicsCritic, PhysicsCriticNode, KeepMostPlausible]
