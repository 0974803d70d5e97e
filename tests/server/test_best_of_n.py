"""Best-of-N in the real server: the winner's seed, wired to a plain sampler, gives the same clip; a run
can be cancelled."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import safetensors.torch
import torch
from latent_physics.devtools.server import ComfyServer, output_files, was_interrupted

pytestmark = pytest.mark.server


def graph_of(*, steps: int = 6, candidates: int = 4, seed: int = 11) -> dict[str, Any]:
    """Best-of-N with a critic of latents; its seed goes to RandomNoise and SamplerCustomAdvanced; both
    latents are saved."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    sampled = {
        "guider": ["guider", 0],
        "sampler": ["choice", 0],
        "sigmas": ["sigmas", 0],
        "latent_image": ["size", 0],
    }
    return {
        "world": node("LatentPhysicsLoadToyWorld"),
        "positive": node("CLIPTextEncode", clip=["world", 1], text="a large red ball thrown to the right"),
        "negative": node("CLIPTextEncode", clip=["world", 1], text=""),
        "size": node("EmptyHunyuanLatentVideo", width=64, height=64, length=17, batch_size=1),
        "guider": node(
            "CFGGuider", model=["world", 0], positive=["positive", 0], negative=["negative", 0], cfg=2.0
        ),
        "choice": node("KSamplerSelect", sampler_name="res_multistep"),
        "sigmas": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=steps, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=seed),
        "critic": node("LatentPhysicsLoadPhysicsCritic", name="toy/toy_predictor_order2.safetensors"),
        "best": node(
            "LatentPhysicsBestOfNSampler",
            noise=["noise", 0],
            critic=["critic", 0],
            fps=16.0,
            candidates=candidates,
            prune_first=0.3,
            prune_second=0.5,
            **sampled,
        ),
        "again": node("RandomNoise", noise_seed=["best", 3]),
        "plain": node("SamplerCustomAdvanced", noise=["again", 0], **sampled),
        "save_best": node("SaveLatent", samples=["best", 0], filename_prefix="best"),
        "save_plain": node("SaveLatent", samples=["plain", 0], filename_prefix="plain"),
        "table": node("PreviewAny", source=["best", 5]),
    }


def test_winner_is_the_plain_samplers_clip_of_its_seed(server: ComfyServer) -> None:
    entry = server.run(server.with_defaults(graph_of()))
    files = dict(output_files(entry))
    best, plain = (
        safetensors.torch.load_file(server.path_of(files[name]))["latent_tensor"]
        for name in ("save_best", "save_plain")
    )
    assert torch.equal(best, plain)
    rows = [json.loads(line) for line in entry["outputs"]["table"]["text"][0].splitlines()]
    assert sorted(row["seed"] for row in rows) == [11, 12, 13, 14]
    assert [row["dropped_at"] for row in rows] == [None, 3, 2, 2]


def test_it_can_be_cancelled_between_candidates(server: ComfyServer) -> None:
    prompt = server.queue(server.with_defaults(graph_of(steps=400, candidates=16, seed=99)))
    for _ in range(600):
        if "/400 [" in server.log.read_text(encoding="utf-8", errors="replace"):
            break
        time.sleep(0.1)
    server.interrupt()
    assert was_interrupted(server.wait(prompt))


def test_a_rate_left_out_is_refused_before_anything_loads(server: ComfyServer) -> None:
    from latent_physics.devtools.server import PromptRejected

    graph = graph_of()
    graph["best"]["inputs"]["fps"] = 0.0
    with pytest.raises(PromptRejected) as refused:
        server.queue(server.with_defaults(graph))
    assert "fps is 0" in json.dumps(refused.value.reply)
