"""The Best-of-N Sampler: several seeds, judged while they are sampled, the worse ones dropped on the way."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from .critics import CATEGORY, PhysicsCriticType, fps_input, fps_is_set
from .host import conditioning, spaces, wires
from .host.best_of_n import BestOfN, Candidate, evaluations, stops
from .host.critics import CandidateJudge, PhysicsCritic, ranking_title
from .views import figures, ranking


class BestOfNSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsBestOfNSampler",
            display_name="Best-of-N Sampler",
            category=CATEGORY,
            description="Stands where SamplerCustomAdvanced stands. Starts several seeds, lets a physics "
            "critic look at the "
            "half-finished videos, drops the worse half, and finishes the rest. The winner is, bit for "
            "bit, what its seed gives "
            "in the plain sampler.",
            search_aliases=["best of n", "seeds", "prune", "verifier", "plausibility"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip="From RandomNoise: the first candidate's seed; each further one counts 1 up.",
                ),
                io.Guider.Input("guider", tooltip="From CFGGuider or BasicGuider."),
                io.Sampler.Input("sampler", tooltip="Any sampler. It is only paused, never changed."),
                io.Sigmas.Input("sigmas", tooltip="From a scheduler."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty video latent of one clip, or an encoded one."
                ),
                PhysicsCriticType.Input(
                    "critic", tooltip="From Load Physics Critic. A motion predictor needs no decoding."
                ),
                fps_input(),
                io.Int.Input("candidates", default=8, min=1, max=256, tooltip="Number of seeds to try."),
                io.Float.Input(
                    "prune_first",
                    default=0.15,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fraction of the steps after which the worse half is dropped for the first "
                    "time. 0 never drops.",
                ),
                io.Float.Input(
                    "prune_second",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fraction of the steps after which the worse half of the rest is dropped. 0 "
                    "skips it.",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Candidates to sample at once; halved by itself where memory runs out. 1 gives "
                    "exactly the plain "
                    "sampler's clip; above it clips differ in the last digits. Samplers that draw noise "
                    "always use 1.",
                    advanced=True,
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes for critics that judge images; motion consistency needs none.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Goes into the table beside every candidate.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="output", tooltip="The winner, as SamplerCustomAdvanced gives it."
                ),
                io.Latent.Output(display_name="denoised_output", tooltip="Its last denoised estimate."),
                io.Latent.Output(
                    display_name="finished",
                    tooltip="All candidates that were finished, best first, as one batch; with sound in the "
                    "latent, the winner alone.",
                ),
                io.Int.Output(
                    display_name="seed", tooltip="The winner's seed, to render it again with RandomNoise."
                ),
                io.Image.Output(
                    display_name="ranking",
                    tooltip="All candidates with their scores, best first, as a picture.",
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="A JSON object a line, best first: prompt, seed, rank, and every score of "
                    "every look.",
                ),
                io.Int.Output(
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="The seeds of the clips in finished, in their order, for Keep Most Plausible.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, fps: float | None = None) -> bool | str:
        return fps_is_set(fps)

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sampler: Any,
        sigmas: Tensor,
        latent_image: dict[str, Any],
        critic: PhysicsCritic,
        fps: float,
        candidates: int,
        prune_first: float,
        prune_second: float,
        batch: int = 1,
        vae: Any = None,
        prompt: str = "",
    ) -> io.NodeOutput:
        spaces.require_video_model(guider.model_patcher, "Best-of-N Sampler")
        conds = guider.original_conds.get("positive")
        shape = wires.video_in(latent_image).shape
        cond = conditioning.pooled_condition(conds, 0.0, shape, torch.device("cpu"))
        judge = CandidateJudge(critic, guider.model_patcher, vae, fps, cond)
        run = BestOfN(noise, guider, sampler, sigmas, latent_image, batch=batch, judge=judge)
        found = run.run(candidates, (prune_first, prune_second))
        rows = candidate_rows(found, prompt)
        steps = len(sigmas) - 1
        cost = evaluations(
            candidates, steps, stops(steps, (prune_first, prune_second)) if candidates > 1 else []
        )
        title = f"{ranking_title(critic, candidates)}; {cost} steps, {cost / steps:.1f} times one clip"
        picture = ranking.ranking_table(rows, title)
        finished = [candidate for candidate in found if candidate.outputs is not None]
        whole = finished[0].outputs[0]
        if getattr(whole["samples"], "is_nested", False):  # no batch
            finished = finished[:1]
        else:
            clips = [candidate.outputs[0]["samples"] for candidate in finished]
            whole = {**whole, "samples": torch.cat(clips)}
        return io.NodeOutput(
            *found[0].outputs,
            whole,
            found[0].seed,
            picture,
            ranking.json_lines(rows),
            [candidate.seed for candidate in finished],
            ui=figures.preview_image(picture, cls),
        )


def candidate_rows(found: list[Candidate], prompt: str) -> list[dict[str, Any]]:
    """Candidates of a sampler, best first, as rows of the table: the last look, and all looks by
    themselves."""
    rows = []
    for place, candidate in enumerate(found, start=1):
        looks = [
            {
                "step": mark.step,
                "sigma": round(mark.sigma, 6),
                "score": round(mark.score, 6),
                "plausibility": round(mark.plausibility, 6),
                "gate": round(mark.gate, 6),
                "motion": round(mark.motion, 6),
                "parts": {name: round(value, 6) for name, value in mark.parts.items()},
            }
            for mark in candidate.marks
        ]
        last = looks[-1]
        kept = candidate.outputs is not None
        rows.append(
            {
                "prompt": prompt,
                "seed": candidate.seed,
                "rank": place,
                **{key: last[key] for key in list(last)[2:]},
            }
            | {"dropped_at": None if kept else last["step"], "looks": looks}
        )
    return rows


NODES = [BestOfNSampler]
