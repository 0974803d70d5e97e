"""ComfyUI in this process, on the CPU, with tiny random models built from its own classes.

The ComfyUI tested is the one COMFYUI_PATH names, or the newest that dev.py put into .comfyui.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_physics.devtools import comfyui

COMFYUI = comfyui.find(Path(__file__).parents[2])
if COMFYUI is not None:
    sys.path.append(str(COMFYUI.path))  # last: nothing of ours may be hidden by a file of ComfyUI's
    import comfy.cli_args

    comfy.cli_args.args.cpu = True


def build(config: Any) -> Any:
    """A MODEL with seeded random weights from one of ComfyUI's supported-model configurations."""
    import comfy.model_patcher

    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 1.0 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


TEXT = 32
"""Width of the test models' text embeddings."""


def wan_config(dim: int = 128, in_dim: int = 16) -> Any:
    from comfy.supported_models import WAN21_T2V

    sizes = {
        "dim": dim,
        "num_heads": dim // 128,
        "num_layers": 2,
        "ffn_dim": 64,
        "in_dim": in_dim,
        "out_dim": 16,
        "text_dim": TEXT,
    }
    return WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", **sizes})


def cogvideox_config(heads: int = 1) -> Any:
    from comfy.supported_models import CogVideoX_T2V

    sizes = {
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "time_embed_dim": 32,
        "text_embed_dim": TEXT,
        "num_layers": 2,
    }
    return CogVideoX_T2V(
        {
            "image_model": "cogvideox",
            "use_rotary_positional_embeddings": True,
            "max_text_seq_length": 6,
            **sizes,
        }
    )


def hunyuan_config() -> Any:
    from comfy.supported_models import HunyuanVideo

    return HunyuanVideo(
        {
            "image_model": "hunyuan_video",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": TEXT,
            "context_in_dim": TEXT,
            "hidden_size": 128,
            "mlp_ratio": 1.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [16, 24, 24],
            "theta": 256,
            "patch_size": [1, 2, 2],
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": False,
            "meanflow": False,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        }
    )


def ltxv_config() -> Any:
    from comfy.supported_models import LTXV

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "cross_attention_dim": 128,
        "caption_channels": TEXT,
        "num_layers": 1,
    }
    return LTXV({"image_model": "ltxv", **sizes})


@pytest.fixture(scope="session")
def wan() -> Any:
    """A tiny Wan 2.1 text-to-video MODEL: the toy world's architecture, so its latent space is "toy"."""
    return build(wan_config())


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], Any]:
    """Name -> MODEL, built once."""
    configs = {
        "wan": wan_config,
        "wide wan": lambda: wan_config(dim=384),
        "cogvideox": cogvideox_config,
        "hunyuan": hunyuan_config,
        "ltxv": ltxv_config,
    }
    built: dict[str, Any] = {}
    return lambda name: built.setdefault(name, build(configs[name]())) if name not in built else built[name]


@pytest.fixture(scope="session")
def conditioning() -> Callable[..., list[Any]]:
    """Seed -> CONDITIONING of six tokens, of which the last two are padding (zeros), as umT5 gives them to
    Wan."""

    def make(seed: int, batch: int = 1, **options: Any) -> list[Any]:
        tokens = torch.randn(batch, 6, TEXT, generator=torch.Generator().manual_seed(seed))
        tokens[:, 4:] = 0
        return [[tokens, {"pooled_output": torch.zeros(batch, TEXT), **options}]]

    return make


@pytest.fixture(scope="session")
def make_predictor() -> Callable[..., Any]:
    """What Load Motion Predictor puts on its wire, with random weights."""
    from latent_physics.methods.lamo import MotionFieldPredictor, predictor_info
    from latent_physics.nodes import lamo
    from latent_physics.nodes.host import patching

    def make(
        channels: int = 16, space: str = "toy", order: int = 1, zero: bool = False, lag: int = 2
    ) -> lamo.MotionPredictor:
        import comfy.ops

        network = MotionFieldPredictor(
            channels, TEXT, width=16, blocks=1, order=order, operations=comfy.ops.manual_cast
        )
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(
                    0.3 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
                )
            if zero:
                network.output.weight.zero_()
                network.output.bias.zero_()
        network.requires_grad_(False).eval()
        info = predictor_info(network, space, lag)
        return lamo.MotionPredictor(name="test.safetensors", patcher=patching.manage(network), info=info)

    return make


@pytest.fixture(scope="session")
def sample() -> Callable[..., torch.Tensor]:
    """Runs ComfyUI's sampler as the KSampler node does, in inference mode, and gives the sampled latent."""

    def run(
        model: Any,
        positive: list[Any],
        negative: list[Any],
        *,
        sampler: str = "euler",
        steps: int = 4,
        cfg: float = 3.0,
        shape: tuple[int, ...] = (1, 16, 5, 8, 8),
        seed: int = 5,
        latent: Any = None,
        mask: torch.Tensor | None = None,
        denoise: float = 1.0,
        callback: Any = None,
    ) -> torch.Tensor:
        import comfy.sample

        with torch.inference_mode():
            start = torch.zeros(shape) if latent is None else latent
            noise = comfy.sample.prepare_noise(start, seed)
            return comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                sampler,
                "simple",
                positive,
                negative,
                start,
                denoise=denoise,
                noise_mask=mask,
                callback=callback,
                disable_pbar=True,
                seed=seed,
            )

    return run
