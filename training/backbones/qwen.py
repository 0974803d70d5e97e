"""HunyuanVideo 1.5's two text encoders as one: Qwen2.5-VL reads the prompt, byT5 the words in quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .keys import count_modules
from .refuse import refuse_quantised
from .scaled import is_scaled, scales_in, unmarked
from .stored import stored_tensors
from .text import clean, encoder_from_file, read_weight

TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant. Describe the video by detailing the following aspects:\n"
    "1. The main content and theme of the video.\n2. The color, shape, size, texture, quantity, text, and "
    "spatial relationships of the objects.\n3. Actions, events, behaviors temporal relationships, physical "
    "movement changes of the objects.\n4. background environment, light, style and atmosphere.\n5. camera "
    "angles, movements, and transitions used in the video.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Template that the prompt is put into, as ComfyUI does."""
START = "<|im_start|>"
USER = 3
"""Tokens of the start of the user's turn: its mark, "user" and a line break."""
LAYER = -3
"""The hidden state that is read, of all of them."""
QUOTES = (r'"(.*?)"', "\u2018(.*?)\u2019", "\u201c(.*?)\u201d")
"""Words that byT5 reads too."""
GLYPH_LENGTH = 256
"""Tokens of quoted words at most (diffusers' tokenizer_2_max_length)."""


class HunyuanText(nn.Module):
    """Qwen2.5-VL's language model and byT5, with their tokenizers."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, glyphs: nn.Module, glyph_tokenizer: Any) -> None:
        super().__init__()
        self.encoder, self.glyphs = encoder, glyphs
        self.tokenizer, self.glyph_tokenizer = tokenizer, glyph_tokenizer

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.encoder.config.hidden_size

    @torch.no_grad()
    def forward(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` and mask `B L`: Qwen's, then byT5's filled up with zeros. `length`: most tokens of
        Qwen's."""
        rows = [torch.cat([self.prompt(text, length), self.quoted(text)]) for text in map(clean, prompts)]
        longest = max(map(len, rows))
        mask = torch.stack([torch.arange(longest) < len(row) for row in rows]).to(rows[0].device)
        return torch.stack([nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows]), mask

    def prompt(self, text: str, length: int) -> Tensor:
        """Qwen's tokens `L D` from the prompt's first on, the end of its turn included."""
        ids = self.tokenizer(TEMPLATE.format(text or " "))["input_ids"]
        turn = [place for place, token in enumerate(ids) if token == self._start][1]
        device = next(self.encoder.parameters()).device
        ids = torch.tensor(ids[: turn + USER + length], device=device)[None]
        states = self.encoder(input_ids=ids, output_hidden_states=True).hidden_states
        return states[LAYER][0, turn + USER :]

    @property
    def _start(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(START)

    def quoted(self, text: str) -> Tensor:
        """byT5's tokens `L D` of the words in quotes; none where there are no quotes."""
        weight = next(self.glyphs.parameters())
        words = [word for pattern in QUOTES for word in re.findall(pattern, text)]
        if not words:
            return weight.new_zeros(0, self.width)
        said = "".join(f'Text "{word}". ' for word in words)
        ids = self.glyph_tokenizer(said)["input_ids"][:GLYPH_LENGTH]
        tokens = self.glyphs(torch.tensor(ids, device=weight.device)[None]).last_hidden_state[0]
        return nn.functional.pad(tokens, (0, self.width - tokens.shape[1]))

    def is_cut(self, prompts: Sequence[str], length: int) -> list[bool]:
        """Whether each prompt has more than `length` tokens."""
        return [len(self.tokenizer(clean(prompt))["input_ids"]) > length for prompt in prompts]


def from_folder(source: str | os.PathLike[str], dtype: torch.dtype) -> HunyuanText:
    """Both encoders of a diffusers folder or hub id. Raises OSError."""
    from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2_5_VLTextModel, T5EncoderModel

    parts = {"dtype": dtype, "use_safetensors": True}
    return HunyuanText(
        Qwen2_5_VLTextModel.from_pretrained(source, subfolder="text_encoder", **parts),
        AutoTokenizer.from_pretrained(source, subfolder="tokenizer"),
        T5EncoderModel.from_pretrained(source, subfolder="text_encoder_2", **parts),
        ByT5Tokenizer.from_pretrained(source, subfolder="tokenizer_2"),
    )


def from_files(source: Mapping[str, str | os.PathLike[str]], dtype: torch.dtype) -> HunyuanText:
    """Both encoders from ComfyUI's files: "text" is Qwen2.5-VL, "text_also" byT5, "tokenizer" a folder or hub
    id of Qwen's. Raises TrainingError where one is missing or something else."""
    from transformers import AutoTokenizer, ByT5Tokenizer

    for part, what in (("text_also", "byT5's file (byt5_small_glyphxl_fp16)"), ("tokenizer", TOKENIZER)):
        if part not in source:
            raise TrainingError(
                f"HunyuanVideo 1.5 reads prompts with two encoders; {part!r} is missing: {what}."
            )
    qwen = qwen_from_file(Path(source["text"]), dtype)
    glyphs = encoder_from_file(Path(source["text_also"]), dtype)[0]
    return HunyuanText(qwen, AutoTokenizer.from_pretrained(source["tokenizer"]), glyphs, ByT5Tokenizer())


TOKENIZER = "a folder or hub id of Qwen2.5's tokenizer (ComfyUI's is comfy/text_encoders/qwen25_tokenizer)"


def qwen_from_file(path: Path, dtype: torch.dtype) -> nn.Module:
    """The language model of a Qwen2.5-VL file as ComfyUI's text_encoders folder holds it; what sees pictures
    is left out. fp8 files with scales are read as what their weights stand for. Raises TrainingError."""
    from transformers import Qwen2Config, Qwen2Model

    state, _ = stored_tensors(path)
    scales = scales_in(state) if is_scaled(state) else {}
    state = unmarked(state) if scales else state
    refuse_quantised(state, path)
    state = {key: value for key, value in state.items() if key.startswith("model.")}
    try:
        vocabulary, width = state["model.embed_tokens.weight"].shape
        layer = "model.layers.0."
        heads = state[layer + "self_attn.q_proj.weight"].shape[0] // HEAD_WIDTH
        config = Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=state[layer + "mlp.up_proj.weight"].shape[0],
            num_hidden_layers=count_modules(state, "model.layers"),
            num_attention_heads=heads,
            num_key_value_heads=state[layer + "self_attn.k_proj.weight"].shape[0] // HEAD_WIDTH,
            head_dim=HEAD_WIDTH,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            max_position_embeddings=128000,
        )
        with torch.device("meta"):
            model = Qwen2Model(config)
        filled = {
            key.removeprefix("model."): read_weight(key, value, scales.get(key)).to(dtype)
            for key, value in state.items()
        }
        model.load_state_dict(filled, strict=True, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(f"{path.name} is not a Qwen2.5-VL encoder ({reason}).") from error
    model.rotary_emb = type(model.rotary_emb)(config)  # a table that no file holds
    return model


HEAD_WIDTH = 128
"""Head width of every Qwen2.5."""
