"""Prompts that are longer than a backbone's text encoder reads, told by its tokenizer alone: no weights are
loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .families import KINDS
from .load import DEFAULT_SOURCE, TOY_WEIGHTS, Source
from .text import Tokenise, from_sentencepiece, from_tokenizer, longer_than

IsCut = Callable[[Sequence[str]], list[bool]]
"""Prompts -> whether each is cut."""


def load_is_cut(family: str, source: Source | None = None) -> IsCut | None:
    """A function that tells which prompts are cut, or None where the tokenizer is not on this disk: nothing
    is downloaded.

    `family` and `source` as for `load_backbone`.
    """
    try:
        if family == "toy":
            from ...toyworld.text import ToyTextEncoder

            path = source["text"] if isinstance(source, Mapping) else TOY_WEIGHTS / "toy_text.safetensors"
            return ToyTextEncoder.load(path).is_cut
        tokenise = _tokenizer(source or DEFAULT_SOURCE[family])
    except Exception:  # tokenizers raise a dozen types of their own; each means that there is none to ask
        return None
    length = KINDS[family].backbone.text_length
    return lambda prompts: longer_than(tokenise, prompts, length)


def _tokenizer(source: Source) -> Tokenise:
    if isinstance(source, Mapping) and "tokenizer" not in source:
        import safetensors

        with safetensors.safe_open(Path(source["text"]), framework="np") as file:
            return from_sentencepiece(file.get_tensor("spiece_model").tobytes())
    from transformers import AutoTokenizer

    where: dict[str, Any] = {} if isinstance(source, Mapping) else {"subfolder": "tokenizer"}
    name = source["tokenizer"] if isinstance(source, Mapping) else source
    return from_tokenizer(AutoTokenizer.from_pretrained(name, local_files_only=True, **where))
