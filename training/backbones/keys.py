"""Names of weights: diffusers <-> native (the original releases', which ComfyUI's stock loaders read), as
data.

A map is a tuple of rows `(diffusers name, native name)`. A name is a whole module or parameter path; what
follows it (`.weight`,
`.bias`, `.lora_A.weight`, ...) is kept: the same map serves full checkpoints and LoRA files. `{n}` stands for
the block's number.
The maps are complete: a key that no row names is an error, which is how a file of another family is
recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

Value = TypeVar("Value")
KeyMap = tuple[tuple[str, str], ...]

WAN_DIT: KeyMap = (
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("blocks.{n}.attn1.to_q", "blocks.{n}.self_attn.q"),
    ("blocks.{n}.attn1.to_k", "blocks.{n}.self_attn.k"),
    ("blocks.{n}.attn1.to_v", "blocks.{n}.self_attn.v"),
    ("blocks.{n}.attn1.to_out.0", "blocks.{n}.self_attn.o"),
    ("blocks.{n}.attn1.norm_q", "blocks.{n}.self_attn.norm_q"),
    ("blocks.{n}.attn1.norm_k", "blocks.{n}.self_attn.norm_k"),
    ("blocks.{n}.attn2.to_q", "blocks.{n}.cross_attn.q"),
    ("blocks.{n}.attn2.to_k", "blocks.{n}.cross_attn.k"),
    ("blocks.{n}.attn2.to_v", "blocks.{n}.cross_attn.v"),
    ("blocks.{n}.attn2.to_out.0", "blocks.{n}.cross_attn.o"),
    ("blocks.{n}.attn2.norm_q", "blocks.{n}.cross_attn.norm_q"),
    ("blocks.{n}.attn2.norm_k", "blocks.{n}.cross_attn.norm_k"),
    ("blocks.{n}.attn2.add_k_proj", "blocks.{n}.cross_attn.k_img"),
    ("blocks.{n}.attn2.add_v_proj", "blocks.{n}.cross_attn.v_img"),
    ("blocks.{n}.attn2.norm_added_k", "blocks.{n}.cross_attn.norm_k_img"),
    # The second norm of diffusers stands before cross attention, which the original calls its third.
    ("blocks.{n}.norm2", "blocks.{n}.norm3"),
    ("blocks.{n}.ffn.net.0.proj", "blocks.{n}.ffn.0"),
    ("blocks.{n}.ffn.net.2", "blocks.{n}.ffn.2"),
    ("blocks.{n}.scale_shift_table", "blocks.{n}.modulation"),
    ("scale_shift_table", "head.modulation"),
    ("proj_out", "head.head"),
)
"""The Wan 2.1 / 2.2 transformer, text- and image-to-video."""

COGVIDEOX_DIT: KeyMap = (
    ("patch_embed.proj", "patch_embed.proj"),
    ("patch_embed.text_proj", "patch_embed.text_proj"),
    ("patch_embed.pos_embedding", "patch_embed.pos_embedding"),
    ("time_embedding.linear_1", "time_embedding_linear_1"),
    ("time_embedding.linear_2", "time_embedding_linear_2"),
    ("ofs_embedding.linear_1", "ofs_embedding_linear_1"),
    ("ofs_embedding.linear_2", "ofs_embedding_linear_2"),
    ("transformer_blocks.{n}.norm1", "blocks.{n}.norm1"),
    ("transformer_blocks.{n}.norm2", "blocks.{n}.norm2"),
    ("transformer_blocks.{n}.attn1.to_q", "blocks.{n}.q"),
    ("transformer_blocks.{n}.attn1.to_k", "blocks.{n}.k"),
    ("transformer_blocks.{n}.attn1.to_v", "blocks.{n}.v"),
    ("transformer_blocks.{n}.attn1.norm_q", "blocks.{n}.norm_q"),
    ("transformer_blocks.{n}.attn1.norm_k", "blocks.{n}.norm_k"),
    ("transformer_blocks.{n}.attn1.to_out.0", "blocks.{n}.attn_out"),
    ("transformer_blocks.{n}.ff.net.0.proj", "blocks.{n}.ff_proj"),
    ("transformer_blocks.{n}.ff.net.2", "blocks.{n}.ff_out"),
    ("norm_final", "norm_final"),
    ("norm_out", "norm_out"),
    ("proj_out", "proj_out"),
)
"""The CogVideoX 1.0 and 1.5 transformer. A model without rotary positions (2B) also needs its position table
in the file."""

_RESIDUAL = (
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
)


def _residual(diffusers: str, native: str) -> KeyMap:
    """The rows of one residual block of the Wan VAE."""
    return tuple((f"{diffusers}.{ours}", f"{native}.{theirs}") for ours, theirs in _RESIDUAL)


def _wan_vae_ends() -> KeyMap:
    """The rows that every Wan VAE has: both ends of both halves, and their middles."""
    rows: list[tuple[str, str]] = [("quant_conv", "conv1"), ("post_quant_conv", "conv2")]
    for half in ("encoder", "decoder"):
        rows += [
            (f"{half}.conv_in", f"{half}.conv1"),
            (f"{half}.norm_out", f"{half}.head.0"),
            (f"{half}.conv_out", f"{half}.head.2"),
        ]
        rows += [(f"{half}.mid_block.attentions.0", f"{half}.middle.1")]
        rows += _residual(f"{half}.mid_block.resnets.0", f"{half}.middle.0")
        rows += _residual(f"{half}.mid_block.resnets.1", f"{half}.middle.2")
    return tuple(rows)


def _resampler(diffusers: str, native: str) -> KeyMap:
    """The rows of what changes the size between two levels."""
    return tuple((f"{diffusers}.{part}", f"{native}.{part}") for part in ("resample.1", "time_conv"))


def _wan_vae() -> KeyMap:
    """The Wan 2.1 VAE: four levels of two (encoder) or three (decoder) residual blocks, flat in the
    original."""
    rows = [*_wan_vae_ends(), *_residual("encoder.down_blocks.{n}", "encoder.downsamples.{n}")]
    rows += _resampler("encoder.down_blocks.{n}", "encoder.downsamples.{n}")
    for level in range(4):
        for block in range(3):
            rows += _residual(
                f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.upsamples.{4 * level + block}"
            )
        rows += _resampler(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.upsamples.{4 * level + 3}")
    return tuple(rows)


def _wan22_vae() -> KeyMap:
    """The VAE of Wan 2.2 5B: the same levels, each in a block of its own."""
    rows = [*_wan_vae_ends()]
    for half, way, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        level, native = f"{half}.{way}_blocks.{{n}}", f"{half}.{way}samples.{{n}}.{way}samples"
        for block in range(blocks):
            rows += _residual(f"{level}.resnets.{block}", f"{native}.{block}")
        rows += _resampler(f"{level}.{way}sampler", f"{native}.{blocks}")
    return tuple(rows)


WAN_VAE: KeyMap = _wan_vae()
"""The Wan 2.1 VAE of any width, which Wan 2.2 14B has too."""
WAN22_VAE: KeyMap = _wan22_vae()
"""The VAE of Wan 2.2 5B, 48 channels at a sixteenth of the size."""

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What native files put before a transformer's keys: full checkpoints and LoRA files; both are taken off on
reading."""


class KeyMapError(ValueError):
    """A key belongs to no row of the map. The message is one sentence for the user."""


def to_native(state: Mapping[str, Value], maps: KeyMap) -> dict[str, Value]:
    """`state` under native names. Raises KeyMapError at the first key that the map does not name."""
    return {_translate(key, maps, 0): value for key, value in state.items()}


def to_diffusers(state: Mapping[str, Value], maps: KeyMap) -> dict[str, Value]:
    """`state` (with or without a `diffusion_model.` prefix) under diffusers' names. Raises KeyMapError as
    `to_native` does."""
    return {_translate(strip_prefix(key), maps, 1): value for key, value in state.items()}


def strip_prefix(key: str) -> str:
    """`key` without the prefix that native files carry."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def is_native(state: Mapping[str, object], maps: KeyMap) -> bool:
    """Whether every key is a native name of the map; False where every key is diffusers'. Raises KeyMapError
    for neither."""
    keys = [strip_prefix(key) for key in state]
    if all(_match(key, maps, 0) for key in keys):
        return False
    for key in keys:
        _translate(key, maps, 1)
    return True


@lru_cache(maxsize=16)
def _patterns(maps: KeyMap, side: int) -> list[tuple[re.Pattern[str], str]]:
    """Regular expressions of one side with the other side's template, the longest name first: a prefix never
    wins over a path."""
    rows = sorted(maps, key=lambda row: len(row[side]), reverse=True)
    return [
        (
            re.compile(re.escape(row[side]).replace(r"\{n\}", r"(?P<n>\d+)") + r"(?P<rest>\..*)?"),
            row[1 - side],
        )
        for row in rows
    ]


def _match(key: str, maps: KeyMap, side: int) -> tuple[re.Match[str], str] | None:
    for pattern, template in _patterns(maps, side):
        found = pattern.fullmatch(key)
        if found:
            return found, template
    return None


def _translate(key: str, maps: KeyMap, side: int) -> str:
    match = _match(key, maps, side)
    if match is None:
        raise KeyMapError(
            f"{key!r} is not a weight of this model family; the file belongs to another model or another "
            f"format."
        )
    found, template = match
    return template.replace("{n}", found.groupdict().get("n") or "") + (found["rest"] or "")
