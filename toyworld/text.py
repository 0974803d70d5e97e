"""The toy text encoder: words to 4096-wide tokens, the width Wan's transformer expects of umT5."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..methods.weights import WeightsInfo, load_weights, save_weights
from .prompts import vocabulary

KIND = "toy_text_encoder"
PAD, UNKNOWN = 0, 1


class ToyTextEncoder(nn.Module):
    """One attention layer over word embeddings, widened to `width`. Prompts are cut or padded to `length`
    words; padding is all zeros."""

    def __init__(
        self,
        words: Sequence[str] | None = None,
        *,
        width: int = 4096,
        hidden: int = 64,
        length: int = 24,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`words`: the vocabulary; by default every word that the worlds' phrasings use."""
        super().__init__()
        self.words = tuple(vocabulary() if words is None else words)
        self.index = {word: number + 2 for number, word in enumerate(self.words)}
        self.width, self.hidden, self.length = width, hidden, length
        self.embedding = nn.Embedding(len(self.words) + 2, hidden, dtype=dtype)
        self.position = nn.Parameter(torch.randn(length, hidden, dtype=dtype) * 0.02)
        self.mix = nn.TransformerEncoderLayer(
            hidden, 4, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True, dtype=dtype
        )
        self.norm = nn.LayerNorm(hidden, dtype=dtype)
        self.widen = nn.Linear(hidden, width, dtype=dtype)

    def tokenise(self, prompts: Sequence[str]) -> Tensor:
        """Word numbers, `B length`; 0 pads, 1 stands for a word outside the vocabulary."""
        ids = torch.full((len(prompts), self.length), PAD)
        for row, prompt in enumerate(prompts):
            numbers = [self.index.get(word, UNKNOWN) for word in re.findall(r"[a-z]+", prompt.lower())][
                : self.length
            ]
            ids[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return ids

    def is_cut(self, prompts: Sequence[str], length: int | None = None) -> list[bool]:
        """Whether each prompt has more words than this encoder's own length, whatever is asked for."""
        return [len(re.findall(r"[a-z]+", prompt.lower())) > self.length for prompt in prompts]

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `B length width` and mask `B length` (True on words) of word numbers `B length`."""
        mask = ids != PAD
        # attention needs one key to look at: an empty prompt attends to its padding, whose output is zeroed
        # below
        hidden_keys = ~mask & mask.any(1, keepdim=True)
        hidden = self.mix(self.embedding(ids) + self.position, src_key_padding_mask=hidden_keys)
        return self.widen(self.norm(hidden)) * mask.unsqueeze(-1), mask

    def forward(self, prompts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens `B length width` and mask of prompts; `length` is this encoder's own, whatever is asked
        for.
        """
        return self.encode(self.tokenise(prompts).to(self.position.device))

    def save(self, path: str | os.PathLike[str], recipe: dict, dtype: torch.dtype = torch.float16) -> None:
        """Writes weights and vocabulary."""
        config = {"words": self.words, "width": self.width, "hidden": self.hidden, "length": self.length}
        state = {key: value.to(dtype) for key, value in self.state_dict().items()}
        save_weights(path, state, WeightsInfo(kind=KIND, latent_space="toy", config=config, recipe=recipe))

    @classmethod
    def load(cls, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> ToyTextEncoder:
        """Reads what `save` wrote. Raises WeightsError where the file is missing, damaged or another kind."""
        state, info = load_weights(path, KIND)
        encoder = cls(**info.config)
        encoder.load_state_dict(state)
        return encoder.to(dtype).eval().requires_grad_(False)
