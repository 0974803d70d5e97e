"""Text encoders behind one call: prompts -> tokens and mask. T5 and umT5, from a folder or a single native
file."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..console import TrainingError
from .keys import count_modules
from .refuse import refuse_quantised
from .scaled import is_scaled, scales_in, unmarked, unscaled
from .stored import StoredTensor, stored_tensors

Tokenise = Callable[[Sequence[str], int], tuple[Tensor, Tensor]]
"""prompts, length -> ids and mask, both `B length`; padded with 0, cut off where longer."""


class T5Text(nn.Module):
    """A T5-like encoder with its tokenizer."""

    def __init__(self, encoder: nn.Module, tokenise: Tokenise) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenise = tokenise

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.encoder.config.d_model

    def forward(
        self, prompts: Sequence[str], length: int, attend_padding: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Tokens `B length D` and mask `B length` (bool, True on the prompt's tokens and its end token)."""
        ids, mask = self.tokenise([clean(prompt) for prompt in prompts], length)
        device = next(self.encoder.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        tokens = self.encoder(ids, attention_mask=None if attend_padding else mask).last_hidden_state
        return tokens, mask.bool()

    def is_cut(self, prompts: Sequence[str], length: int) -> list[bool]:
        """Whether each prompt has more than `length` tokens."""
        return longer_than(self.tokenise, prompts, length)


def clean(prompt: str) -> str:
    """HTML entities resolved, white space collapsed, as the models' own pipelines do."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def longer_than(tokenise: Tokenise, prompts: Sequence[str], length: int) -> list[bool]:
    """Whether each prompt has more tokens, its end token included, than `length`."""
    if not prompts:
        return []
    _, mask = tokenise([clean(prompt) for prompt in prompts], length + 1)
    return (mask.sum(dim=1) > length).tolist()


def from_tokenizer(tokenizer: Any) -> Tokenise:
    """Wraps a transformers tokenizer."""

    def tokenise(prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        out = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return out.input_ids, out.attention_mask

    return tokenise


def from_sentencepiece(model: bytes) -> Tokenise:
    """Wraps the sentencepiece model that ComfyUI's umT5 files carry inside."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def tokenise(prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        ids, mask = (
            torch.zeros(len(prompts), length, dtype=torch.long),
            torch.zeros(len(prompts), length, dtype=torch.long),
        )
        for row, prompt in enumerate(prompts):
            found = [*pieces.encode(prompt)[: length - 1], 1]  # 1 ends a sequence in every T5 vocabulary.
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask

    return tokenise


def from_folder(source: str | os.PathLike[str], dtype: torch.dtype, encoder: str) -> T5Text:
    """A diffusers folder's or hub id's encoder, of a class of transformers. Raises OSError."""
    import transformers

    model = getattr(transformers, encoder).from_pretrained(
        source, subfolder="text_encoder", dtype=dtype, use_safetensors=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, subfolder="tokenizer")
    return T5Text(model, from_tokenizer(tokenizer))


def from_native_file(path: Path, tokenizer: str | Path | None, dtype: torch.dtype) -> T5Text:
    """Loads a T5 or umT5 encoder from one safetensors file as ComfyUI's text_encoders folder holds them.

    umT5 files carry their tokenizer; T5 needs `tokenizer` (a folder or hub id). Raises TrainingError where
    the file is no T5, or lacks its tokenizer.
    """
    from transformers import AutoTokenizer

    encoder, piece_model = encoder_from_file(path, dtype)
    if tokenizer is not None:
        return T5Text(encoder, from_tokenizer(AutoTokenizer.from_pretrained(tokenizer)))
    if piece_model is None:
        raise TrainingError(
            f"{path.name} carries no tokenizer; add 'tokenizer': a folder or hub id of the T5 tokenizer."
        )
    return T5Text(encoder, from_sentencepiece(piece_model.read().numpy().tobytes()))


def encoder_from_file(path: Path, dtype: torch.dtype) -> tuple[nn.Module, StoredTensor | None]:
    """A T5-like encoder of one safetensors file, and the sentencepiece model that it may carry.

    Sizes are read off the tensors. fp8 files with scales are read as what their weights stand for. Raises
    TrainingError where the file is no T5.
    """
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    state, _ = stored_tensors(path)
    scales = scales_in(state) if is_scaled(state) else {}
    if scales:
        state = unmarked(state)
    refuse_quantised(state, path)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    if "shared.weight" not in state or bias.format(0) not in state:
        raise TrainingError(f"{path.name} is not a T5 or umT5 encoder: it has no {bias.format(0)!r}.")
    piece_model = state.pop("spiece_model", None)
    vocabulary, width = state["shared.weight"].shape
    heads = state[bias.format(0)].shape[1]
    every_layer_has_bias = bias.format(1) in state
    config_type, model_type = (
        (UMT5Config, UMT5EncoderModel) if every_layer_has_bias else (T5Config, T5EncoderModel)
    )
    config = config_type(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=state["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        num_layers=count_modules(state, "encoder.block"),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        encoder = model_type(config)
    filled = {key: read_weight(key, value, scales.get(key)).to(dtype) for key, value in state.items()}
    filled["encoder.embed_tokens.weight"] = filled["shared.weight"]
    missing, unexpected = encoder.load_state_dict(filled, strict=False, assign=True)
    if unexpected or [key for key in missing if not key.endswith("embed_tokens.weight")]:
        raise TrainingError(
            f"{path.name} does not fit a T5 encoder: missing {missing[:2]}, unexpected {unexpected[:2]}."
        )
    return encoder, piece_model


def read_weight(key: str, value: StoredTensor, scale: StoredTensor | None) -> Tensor:
    """A weight's values, times their scale where one lies beside them."""
    if scale is None:
        return value.read()
    return unscaled({key: value.read(), key.removesuffix("weight") + "scale_weight": scale.read()})[key]
