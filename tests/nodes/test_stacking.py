"""In which order LaMo Guidance stands with ComfyUI's own guidance nodes, and which of those act at CFG 1."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

from latent_physics.nodes import lamo

pytestmark = pytest.mark.comfy

GUIDANCE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CFGNorm": ("nodes_cfg", "CFGNorm", {"strength": 1.0, "pre_cfg": False}),
    "CFGZeroStar": ("nodes_cfg", "CFGZeroStar", {}),
    "Mahiro": ("nodes_mahiro", "Mahiro", {}),
    "TSR": ("nodes_eps", "TemporalScoreRescaling", {"tsr_k": 0.95, "tsr_sigma": 1.0}),
    "Epsilon Scaling": ("nodes_eps", "EpsilonScaling", {"scaling_factor": 1.05}),
    "TCFG": ("nodes_tcfg", "TCFG", {}),
    "APG": ("nodes_apg", "APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}),
    "FreSca": (
        "nodes_fresca",
        "FreSca",
        {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 2},
    ),
    "ScaleROPE": (
        "nodes_rope",
        "ScaleROPE",
        {"scale_x": 1.0, "shift_x": 0.0, "scale_y": 1.0, "shift_y": 0.0, "scale_t": 0.9, "shift_t": 0.0},
    ),
    "NAGuidance": ("nodes_nag", "NAGuidance", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
}
"""Node -> module of comfy_extras, class, inputs beside the model."""


def patch(name: str, model: Any) -> Any:
    module, attribute, inputs = GUIDANCE[name]
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), attribute)
    with torch.inference_mode():
        return node.execute(model=model, **inputs).args[0]


@pytest.fixture
def guide(make_predictor):
    """LaMo Guidance at its defaults on a MODEL, with a share that shows."""

    def apply(model: Any) -> Any:
        with torch.inference_mode():
            return lamo.LaMoGuidance.execute(
                model=model, predictor=make_predictor(), strength=25.0, active=1.0, share=1.0, start=1.0
            ).args[0]

    return apply


@pytest.fixture(scope="module")
def prompts(conditioning):
    return conditioning(1), conditioning(2)


ALIVE = ("TSR", "Epsilon Scaling", "ScaleROPE", "APG")
"""Those that change a video of Wan at CFG 1."""


@pytest.mark.parametrize("name", GUIDANCE)
def test_at_cfg_1_lamo_acts_where_most_guidance_has_nothing_to_do(wan, guide, sample, prompts, name):
    """docs/workflows.md and README say which: a release in which another acts has to be told there."""
    plain, alone = sample(wan, *prompts, cfg=1.0), sample(patch(name, wan), *prompts, cfg=1.0)
    assert ((plain - alone).abs().max() > 2e-5) == (name in ALIVE)  # NAGuidance rounds: it keeps the negative
    assert (sample(guide(patch(name, wan)), *prompts, cfg=1.0) - alone).abs().max() > 0.1


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", GUIDANCE)
def test_lamo_last_has_at_least_the_effect_of_lamo_first(wan, guide, sample, prompts, name, cfg):
    alone = sample(patch(name, wan), *prompts, cfg=cfg)
    last, first = (
        (sample(model, *prompts, cfg=cfg) - alone).std()
        for model in (guide(patch(name, wan)), patch(name, guide(wan)))
    )
    assert last >= first * (1 - 1e-5)
    if name == "Mahiro" and cfg == 1.0:
        assert first < 0.75 * last


def test_nag_does_not_reach_wan(wan, sample, prompts):
    """So it is not in the side-by-side graphs."""
    assert torch.equal(sample(wan, *prompts, cfg=3.0), sample(patch("NAGuidance", wan), *prompts, cfg=3.0))
