"""Names of weights: diffusers <-> native (the original releases', which ComfyUI's stock loaders read), as
data.

A map is a tuple of rows `(diffusers name, native name)`. A name is a whole module or parameter path; what
follows it (`.weight`,
`.bias`, `.lora_A.weight`, ...) is kept: the same map serves full checkpoints and LoRA files. `{n}` stands for
the block's number. A native name may carry a mark of `joined.py`: where diffusers has several layers for one.
The maps are complete: a key that no row names is an error, which is how a file of another family is
recognised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from .joined import PART, PartsError, joined, marked, without_empty, without_mark

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


def _thirds(diffusers: str, native: str, names: tuple[str, str, str] = ("to_q", "to_k", "to_v")) -> KeyMap:
    """The rows of queries, keys and values, which are one layer in the original."""
    return tuple((f"{diffusers}.{name}", f"{native}[{place}/3]") for place, name in enumerate(names))


def _hunyuan15_stream(part: str, norms: str, out: str, names: tuple[str, str, str], end: str) -> KeyMap:
    """The rows of the video's or the words' half of a HunyuanVideo 1.5 block."""
    ours, native = "transformer_blocks.{n}", f"double_blocks.{{n}}.{part}"
    return (
        (f"{ours}.norm1{end}.linear", f"{native}_mod.lin"),
        *_thirds(f"{ours}.attn", f"{native}_attn.qkv", names),
        (f"{ours}.attn.{norms}q", f"{native}_attn.norm.query_norm"),
        (f"{ours}.attn.{norms}k", f"{native}_attn.norm.key_norm"),
        (f"{ours}.attn.{out}", f"{native}_attn.proj"),
        (f"{ours}.ff{end}.net.0.proj", f"{native}_mlp.0"),
        (f"{ours}.ff{end}.net.2", f"{native}_mlp.2"),
    )


_REFINER, _NATIVE_REFINER = (
    "context_embedder.token_refiner.refiner_blocks.{n}",
    "txt_in.individual_token_refiner.blocks.{n}",
)
HUNYUAN15_DIT: KeyMap = (
    ("x_embedder.proj", "img_in.proj"),
    ("image_embedder.norm_in", "vision_in.proj.0"),
    ("image_embedder.linear_1", "vision_in.proj.1"),
    ("image_embedder.linear_2", "vision_in.proj.3"),
    ("image_embedder.norm_out", "vision_in.proj.4"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.in_layer"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.out_layer"),
    ("context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.in_layer"),
    ("context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.out_layer"),
    ("context_embedder.proj_in", "txt_in.input_embedder"),
    (f"{_REFINER}.norm1", f"{_NATIVE_REFINER}.norm1"),
    (f"{_REFINER}.norm2", f"{_NATIVE_REFINER}.norm2"),
    *_thirds(f"{_REFINER}.attn", f"{_NATIVE_REFINER}.self_attn.qkv"),
    (f"{_REFINER}.attn.to_out.0", f"{_NATIVE_REFINER}.self_attn.proj"),
    (f"{_REFINER}.ff.net.0.proj", f"{_NATIVE_REFINER}.mlp.0"),
    (f"{_REFINER}.ff.net.2", f"{_NATIVE_REFINER}.mlp.2"),
    (f"{_REFINER}.norm_out.linear", f"{_NATIVE_REFINER}.adaLN_modulation.1"),
    ("context_embedder_2.norm", "byt5_in.layernorm"),
    ("context_embedder_2.linear_1", "byt5_in.fc1"),
    ("context_embedder_2.linear_2", "byt5_in.fc2"),
    ("context_embedder_2.linear_3", "byt5_in.fc3"),
    ("time_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_embed.timestep_embedder_r.linear_1", "time_r_in.in_layer"),
    ("time_embed.timestep_embedder_r.linear_2", "time_r_in.out_layer"),
    ("cond_type_embed", "cond_type_embedding"),
    *_hunyuan15_stream("img", "norm_", "to_out.0", ("to_q", "to_k", "to_v"), ""),
    *_hunyuan15_stream("txt", "norm_added_", "to_add_out", ("add_q_proj", "add_k_proj", "add_v_proj"),
                       "_context"),
    # diffusers has the scale before the shift, the original the shift first.
    ("norm_out.linear", "final_layer.adaLN_modulation.1[swapped]"),
    ("proj_out", "final_layer.linear"),
)  # fmt: skip
"""The HunyuanVideo 1.5 transformer, text- and image-to-video."""


def _hunyuan15_vae() -> KeyMap:
    """The HunyuanVideo 1.5 VAE: convolutions are one module deeper than their names in ComfyUI's blocks."""
    resnet = (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"),
              ("conv_shortcut", "nin_shortcut.conv"))  # fmt: skip
    rows: list[tuple[str, str]] = []
    for half, way, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        rows += [(f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "norm_out", "conv_out")]
        pairs = [(f"mid_block.resnets.{place}", f"mid.block_{place + 1}") for place in (0, 1)]
        pairs += [(f"{way}_blocks.{{n}}.resnets.{b}", f"{way}.{{n}}.block.{b}") for b in range(blocks)]
        rows += [(f"{half}.{a}.{ours}", f"{half}.{b}.{theirs}") for a, b in pairs for ours, theirs in resnet]
        attention = (("norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("proj_out", "proj_out"))
        rows += [(f"{half}.mid_block.attentions.0.{a}", f"{half}.mid.attn_1.{b}") for a, b in attention]
        ours = f"{half}.{way}_blocks.{{n}}.{way}samplers.0.conv"
        rows += [(ours, f"{half}.{way}.{{n}}.{way}sample.conv")]
    return tuple(rows)


HUNYUAN15_VAE: KeyMap = _hunyuan15_vae()
"""The HunyuanVideo 1.5 VAE."""

_LTX_TIMES: KeyMap = (
    ("time_embed", "adaln_single"),
    ("audio_time_embed", "audio_adaln_single"),
    ("prompt_adaln", "prompt_adaln_single"),
    ("audio_prompt_adaln", "audio_prompt_adaln_single"),
    ("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
    ("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
    ("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
    ("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
)


def _ltx_attention(ours: str, native: str) -> KeyMap:
    """The rows of one attention of LTX-2.3."""
    same = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
    rows = [(f"{ours}.{name}", f"{native}.{name}") for name in same]
    return (*rows, (f"{ours}.norm_q", f"{native}.q_norm"), (f"{ours}.norm_k", f"{native}.k_norm"))


_LTX_BLOCK = "transformer_blocks.{n}"
_LTX_ATTENTIONS = (
    "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn",
)  # fmt: skip
_LTX_SAME = (
    "ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2", "scale_shift_table",
    "audio_scale_shift_table", "prompt_scale_shift_table", "audio_prompt_scale_shift_table",
)  # fmt: skip
LTX23_DIT: KeyMap = (
    ("proj_in", "patchify_proj"),
    ("audio_proj_in", "audio_patchify_proj"),
    *_LTX_TIMES,
    *(row for name in _LTX_ATTENTIONS for row in _ltx_attention(*[f"{_LTX_BLOCK}.{name}"] * 2)),
    *((f"{_LTX_BLOCK}.{name}", f"{_LTX_BLOCK}.{name}") for name in _LTX_SAME),
    (f"{_LTX_BLOCK}.video_a2v_cross_attn_scale_shift_table", f"{_LTX_BLOCK}.scale_shift_table_a2v_ca_video"),
    (f"{_LTX_BLOCK}.audio_a2v_cross_attn_scale_shift_table", f"{_LTX_BLOCK}.scale_shift_table_a2v_ca_audio"),
    ("scale_shift_table", "scale_shift_table"),
    ("audio_scale_shift_table", "audio_scale_shift_table"),
    ("proj_out", "proj_out"),
    ("audio_proj_out", "audio_proj_out"),
)
"""The LTX-2.3 transformer, both streams."""
LTX23_CONNECTOR: KeyMap = (
    ("learnable_registers", "learnable_registers"),
    *_ltx_attention("transformer_blocks.{n}.attn1", "transformer_1d_blocks.{n}.attn1"),
    *((f"transformer_blocks.{{n}}.ff.{name}", f"transformer_1d_blocks.{{n}}.ff.{name}")
      for name in ("net.0.proj", "net.2")),
)  # fmt: skip
"""What LTX-2.3's prompts go through before the video attends to them."""

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
"""Prefixes of a transformer's keys in native files: full checkpoints and LoRA files; both are taken off on
reading."""


class KeyMapError(ValueError):
    """A key belongs to no row of the map. The message is one sentence for the user."""


def to_native(state: Mapping[str, Value], maps: KeyMap) -> dict[str, Value]:
    """`state` under native names. Raises KeyMapError at the first key that the map does not name, and where a
    native tensor's part is missing."""
    try:
        return joined({_translate(key, maps, 0): value for key, value in state.items()})
    except PartsError as error:
        raise KeyMapError(f"{error}; the file is not whole.") from error


def to_diffusers(state: Mapping[str, Value], maps: KeyMap) -> dict[str, Value]:
    """`state` (with or without a `diffusion_model.` prefix) under diffusers' names. Raises KeyMapError as
    `to_native` does."""
    parts = without_empty(_apart({strip_prefix(key): value for key, value in state.items()}, maps))
    return {_translate(key, maps, 1): value for key, value in parts.items()}


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
        if not any(pattern.fullmatch(key) for pattern, _ in _marked(maps)):
            _translate(key, maps, 1)
    return True


def _apart(state: Mapping[str, Value], maps: KeyMap) -> dict[str, Value]:
    """A native state with the layers that the map marks in parts, under marked names."""
    out: dict[str, Value] = {}
    for key, value in state.items():
        found = next(((p.fullmatch(key), count) for p, count in _marked(maps) if p.fullmatch(key)), None)
        if found is None:
            out[key] = value
        else:
            match, count = found
            out |= marked(f"{match['base']}{{}}{match['rest'] or ''}", value, count)
    return out


@lru_cache(maxsize=16)
def _marked(maps: KeyMap) -> list[tuple[re.Pattern[str], int]]:
    """Patterns of the native names that a map marks, with the number of parts (1: swapped halves)."""
    found: dict[str, int] = {}
    for _, native in maps:
        if without_mark(native) != native:
            part = PART.search(native)
            found[without_mark(native)] = int(part["count"]) if part else 1
    return [
        (re.compile("(?P<base>" + re.escape(name).replace(r"\{n\}", r"\d+") + r")(?P<rest>\..*)?"), count)
        for name, count in found.items()
    ]


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


def count_modules(state: Mapping[str, Any], start: str) -> int:
    """Number of the modules `start.N` of a state dict. Raises ValueError where there is none."""
    rests = [key.removeprefix(f"{start}.") for key in state if key.startswith(f"{start}.")]
    return 1 + max(int(rest.split(".")[0]) for rest in rests)
