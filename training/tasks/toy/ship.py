"""Exports the toy models, and real clips for the demo."""

from __future__ import annotations

from dataclasses import asdict

from torch import nn

from ....encoders.base import digest_of
from ....methods.weights import WeightsInfo, save_weights, write_atomically
from ....toyworld.canvas import FRAMES, SIZE
from ....toyworld.data import mixture
from ....toyworld.text import ToyTextEncoder
from ...backbones.keys import to_native
from ...backbones.wan import WanBackbone
from ...console import ProgressLine, saving
from ...data.toy import write_toy_clip
from ...loop.checkpoint import LOG
from .settings import ToyWorldConfig

LOG_ROWS = 500
"""Most rows of a log that ships."""


def export(config: ToyWorldConfig, text: ToyTextEncoder, vae: nn.Module, dit: nn.Module) -> None:
    """Writes toy_vae, toy_dit (native names: ComfyUI's own loaders read them) and toy_text, in half
    precision."""
    recipe = {
        key: value if isinstance(value, (int, float, str)) else str(value)
        for key, value in asdict(config).items()
        if key not in ("out", "export", "begin")  # folders: nobody else's business
    }
    if config.begin:
        recipe["begin"] = digest_of(
            config.begin / f"toy_{part}.safetensors" for part in ("vae", "dit", "text")
        )
    for name, module, keys in (("vae", vae, WanBackbone.vae_keys), ("dit", dit, WanBackbone.dit_keys)):
        state = {key: value.half().cpu() for key, value in to_native(module.state_dict(), keys).items()}
        info = WeightsInfo(
            kind=f"toy_{name}", latent_space="toy", config={"frames": FRAMES, "size": SIZE}, recipe=recipe
        )
        save_weights(config.export / f"toy_{name}.safetensors", state, info)
    text.save(config.export / "toy_text.safetensors", recipe)
    ship_logs(config)


def ship_logs(config: ToyWorldConfig) -> None:
    """Writes the log of every stage beside the weights, in `LOG_ROWS` rows or fewer."""
    for stage in ("text", "vae", "decoder", "base"):
        log = config.out / stage / LOG
        if log.is_file():
            head, *rows = log.read_text(encoding="utf-8").splitlines()
            every = -(-len(rows) // LOG_ROWS)  # the last row is always one of them
            kept = rows[::-1][:: max(every, 1)][::-1]
            path = config.export / "logs" / f"toy_{stage}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, ("\n".join([head, *kept]) + "\n").encode())


def cache_real_clips(config: ToyWorldConfig) -> None:
    """Caches clips of the right dynamics as `latent-physics cache` would have cached videos of them; finished
    ones are kept."""
    from ...backbones.load import load_backbone

    backbone, out = load_backbone("toy", parts=("vae", "text")), config.out / "clips"
    out.mkdir(parents=True, exist_ok=True)
    progress, part = ProgressLine("toy world: clips"), 8
    for start in range(0, config.real_clips, part):
        paths = [out / f"{number:05}.safetensors" for number in range(start, start + part)]
        if all(path.is_file() for path in paths):
            continue
        clips, prompts, worlds = mixture(part, config.seed * 1_000_003 + 500_009 + start, 0.0)
        tokens, mask = backbone.embed_prompts(prompts)
        for path, clip, row, words, prompt, world in zip(paths, clips, tokens, mask, prompts, worlds):
            with saving(str(path), "the clips before are intact"):
                write_toy_clip(path, backbone, clip, prompt, row, words, source=f"{world}-{path.stem}")
        progress.show((start + part) / config.real_clips, f"{start + part} clips")
    progress.close()
