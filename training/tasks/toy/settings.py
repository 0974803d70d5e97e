"""Settings of the toy world's trainings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ....toyworld.canvas import FRAMES, SIZE

SHAPED_BY = {
    "vae": ("size", "vae_width", "vae_noise", "vae_crop"),
    "decoder": ("size", "vae_width", "vae_noise"),
    "latents": ("size", "seed", "wrong", "vae_width", "fit_clips"),
    "base": ("size", "clips", "wrong", "width", "layers", "batch", "shift", "prompt_dropout", "ema"),
}
"""Settings that must match to resume a stage, besides seed and learning rate. The number of steps may change
(the learning rate then follows the new schedule from that step), and so may settings of speed alone."""
SHIPPED = Path(__file__).resolve().parents[3] / "toyworld" / "weights"


@dataclass(kw_only=True)
class ToyWorldConfig:
    """Trains the toy world's VAE, transformer and text encoder, which takes hours."""

    stage: Literal["all", "text", "vae", "decoder", "latents", "base", "export", "clips"] = "all"
    """Stage to run; "all" runs those that are not finished."""
    out: Path = Path("runs/toyworld")
    """Run folder: checkpoints, logs, curves."""
    begin: Path | None = None
    """Folder of the toy world's files (toy_text, toy_vae, toy_dit), by default none: the text encoder is
    taken from there, the VAE and the base model go on from its weights and not from random ones."""
    export: Path = SHIPPED
    """Where the export stage writes toy_vae, toy_dit and toy_text."""
    seed: int = 0
    """Seeds every random draw."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    device: str = "cpu"
    """Where the VAE and the base model are trained: cpu, cuda, or auto (the GPU where there is one)."""

    text_steps: int = 600
    """Steps of the text encoder (batch 64), which learns to tell what a prompt asks for."""

    vae_width: int = 8
    """base_dim of the VAE; Wan's own is 96."""
    vae_steps: int = 9000
    """Steps on 5-frame windows (two latent frames), batch 4."""
    decoder_steps: int = 2500
    """Steps that train the decoder alone after those; the latents stay as they are, so this can run beside
    the base stage."""
    vae_noise: float = 0.1
    """Noise on the latents that the decoder learns from, at most, as a share of each channel's deviation.
    The more, the smoother the latent and the less a sampled latent's errors show."""
    vae_crop: int = 0
    """Side in pixels of the squares, around moving things, that the VAE's first stage is shown, a multiple
    of 8; 0 shows whole pictures."""
    vae_learning_rate: float = 1.5e-3
    """Peak learning rate of the VAE, falling along a cosine."""

    clips: int = 4096
    """Clips in the mixture the base model is trained on; 0 draws new clips without end, and encodes them, in
    each step."""
    wrong: float = 0.8
    """Share of them with corrupted dynamics."""
    fit_clips: int = 64
    """Clips by whose latents the VAE is scaled to the statistics of Wan 2.1's."""

    real_clips: int = 768
    """Clips of the right dynamics that the clips stage caches."""

    width: int = 128
    """Channels of the transformer, a multiple of 128 (the size of a head)."""
    layers: int = 6
    """Transformer blocks."""
    base_steps: int = 20000
    """Steps of the base model."""
    batch: int = 16
    """Clips per step of the base model."""
    base_learning_rate: float = 1e-3
    """Peak learning rate of the base model, falling along a cosine."""
    shift: float = 3.0
    """Shift of the training noise levels towards noise."""
    prompt_dropout: float = 0.1
    """Share of prompts replaced by the empty one, for classifier-free guidance."""
    bf16: Literal["auto", "yes", "no"] = "auto"
    """Compute the base model in bfloat16 (weights stay float32): 2.6 times as fast where the CPU has
    instructions for it, six times as slow where it does not; "auto" looks."""
    compiled: bool = False
    """Compile the base model first (needs a C++ compiler), so that a step takes less time."""
    ema: float = 0.998
    """Decay of the exponential moving average that is exported."""
    save_every: int = 200
    """Steps between checkpoints."""

    @property
    def size(self) -> tuple[int, int]:
        """Frames and side of the clips: what was trained on clips of another size is not resumed."""
        return FRAMES, SIZE
