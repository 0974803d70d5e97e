"""The parts beside the transformer: every prompt of a run in one pass of the text encoder, and one VAE.

A text encoder is 5 to 11 GB and a transformer up to 28: prompts are embedded, and the encoder is freed,
before the transformer is read. Embedded prompts are kept in the run's folder, so that a resumed run whose
prompts are the same reads no text encoder.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...encoders.need import weights_name
from ...methods.lamo import pool_tokens
from ...methods.weights import WeightsError, WeightsInfo, load_weights, save_weights
from ..backbones import Backbone
from ..backbones.load import DEFAULT_SOURCE, TOY_WEIGHTS
from ..console import ProgressLine, saving
from ..data.batches import pad_tokens
from ..data.format import CacheConfig
from ..data.loaders import Part, loaders

KIND, FILE = "embedded_prompts", "prompts.safetensors"
PART = 16
"""Prompts that are embedded at once."""


@dataclass(kw_only=True)
class Prompts:
    """Prompts with their tokens, without padding."""

    words: list[str]
    tokens: list[Tensor]
    """`L D` each."""

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens `B L D` float32, padded to the longest, and mask `B L`."""
        return pad_tokens([self.tokens[index].float() for index in chosen])

    def pooled(self, chosen: Sequence[int]) -> Tensor:
        """Mean token of each prompt, `B D`."""
        return pool_tokens(*self.batch(chosen))


class Companions:
    """Text encoder and VAE of a run, each read once at most."""

    def __init__(
        self,
        encoders: CacheConfig,
        prompts: Sequence[str],
        kept: Path,
        progress: ProgressLine,
        parts: Sequence[Part] = ("vae", "text"),
    ) -> None:
        """encoders: sources of the parts; prompts: all that the run embeds beside its clips' captions; kept:
        file of embedded prompts; parts: those that may be asked for. Raises TrainingError where files do not
        go together."""
        self._load_text, self._load_vae = loaders(encoders, parts)
        self._encoder = text_name(encoders)
        self._progress, self._path = progress, kept
        self.prompts = list(dict.fromkeys(prompts))
        self._tokens = self._read()
        self._vae: nn.Module | None = None

    def gather(self, accelerator: Any) -> None:
        """Embeds the prompts that nothing has embedded yet: the main process for all, which read them."""
        if accelerator.is_main_process:
            self._embed(write=True)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            self._tokens |= self._read()
            self._embed(write=False)  # on a machine that does not see the run's folder

    def take(self, words: Sequence[str]) -> Prompts:
        """Some of the prompts, once they are embedded."""
        return Prompts(words=list(words), tokens=[self._tokens[word] for word in words])

    def load_text(self) -> Backbone:
        """The text encoder, for clips' captions. The run's own prompts are embedded while it is there."""
        text = self._load_text()
        self._embed(write=True, text=text)
        return text

    def load_vae(self, keep: bool = False) -> Backbone:
        """The VAE, for clips' frames; `keep`: `vae` hands the same one out."""
        backbone = self._load_vae()
        self._vae = backbone.vae if keep else None
        return backbone

    @property
    def vae(self) -> nn.Module:
        """The VAE on the CPU, for decoding."""
        if self._vae is None:
            self.load_vae(keep=True)
        return self._vae.cpu()

    def _embed(self, write: bool, text: Backbone | None = None) -> None:
        """Embeds what is missing, with a text encoder of its own unless one is given. Raises TrainingError
        where the disk is full."""
        missing = [word for word in self.prompts if word not in self._tokens]
        if not missing:
            return
        self._tokens |= dict(zip(missing, embed(text or self._load_text(), missing, self._progress)))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if write:
            self._write()

    def _read(self) -> dict[str, Tensor]:
        """Tokens by prompt, of the file that this encoder's were kept in; {} where it is another's, or
        damaged: they are then embedded anew."""
        if not (self.prompts and self._path.is_file()):
            return {}
        try:
            tensors, info = load_weights(self._path, KIND)
        except WeightsError:
            return {}
        if info.config != self._encoder:
            return {}
        kept = {word: tensors[f"{row}"] for row, word in enumerate(info.recipe["prompts"])}
        return {word: kept[word] for word in self.prompts if word in kept}

    def _write(self) -> None:
        tensors = {f"{row}": self._tokens[word] for row, word in enumerate(self.prompts)}
        family, recipe = self._encoder["family"], {"prompts": self.prompts}
        info = WeightsInfo(kind=KIND, latent_space=family, config=self._encoder, recipe=recipe)
        with saving(self._path.name, "the clips cached so far are safe"):
            save_weights(self._path, tensors, info)


def embed(text: Backbone, words: Sequence[str], progress: ProgressLine) -> list[Tensor]:
    """Every prompt's tokens `L D` on the CPU, without padding."""
    kept: list[Tensor] = []
    for start in range(0, len(words), PART):
        tokens, mask = text.embed_prompts(words[start : start + PART])
        for row, present in zip(tokens.cpu(), mask.cpu()):
            # An empty prompt has no token: one of zeros, which Wan's own padding is.
            length = int(present.nonzero().max()) + 1 if present.any() else 0
            kept.append(row[:length].clone() if length else torch.zeros_like(row[:1]))
        progress.show(len(kept) / len(words), f"{len(kept)} of {len(words)} prompts embedded")
    return kept


def text_name(encoders: CacheConfig) -> dict[str, str]:
    """Names of the text encoder whose tokens these are: its content where it is on this disk, its source
    otherwise."""
    family, source = encoders.backbone, encoders.source or DEFAULT_SOURCE.get(encoders.backbone, "")
    if encoders.text:
        path = Path(encoders.text)
    else:
        path = TOY_WEIGHTS / "toy_text.safetensors" if family == "toy" else Path(source) / "text_encoder"
    content = weights_name(path) or str(encoders.text or source)
    also = {"text_also": str(encoders.text_also)} if encoders.text_also else {}
    return {"family": family, "content": content, "tokenizer": str(encoders.tokenizer or "")} | also
