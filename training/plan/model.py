"""The transformer that a recipe names, as sizes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..backbones.base import Backbone
from ..backbones.cogvideox import CogVideoXBackbone, latent_space
from ..backbones.families import KINDS
from ..backbones.keys import is_native, strip_prefix, to_native
from ..backbones.load import DEFAULT_SOURCE, TOY_TEXT_LENGTH, TOY_WEIGHTS, renamed
from ..backbones.published import PUBLISHED
from ..console import TrainingError
from ..data.format import Format, usual_format

if TYPE_CHECKING:
    from ..tasks.finetune import FinetuneConfig


@dataclass(frozen=True)
class Model:
    """A transformer's family and the arguments of its diffusers class."""

    family: str
    config: dict[str, Any]

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.config["num_layers"]

    def build(self, layers: int, dtype: torch.dtype) -> Backbone:
        """The backbone with `layers` blocks, on the meta device, frozen."""
        import diffusers

        row = KINDS[self.family]
        kind = row.backbone
        with torch.device("meta"):
            dit = getattr(diffusers, kind.dit_class)(**{**self.config, "num_layers": layers})
            connector = row.connector_like(self.config) if row.connector_like else None
            for part in filter(None, (dit, connector)):
                torch.nn.Module.to(part, dtype)  # diffusers' own `to` warns of a precision lost
        dit.requires_grad_(False)
        parts = {"dit": dit, "device": "meta", "dtype": dtype}
        if kind is CogVideoXBackbone:
            return kind(latent_space=latent_space(self.config["num_attention_heads"]), **parts)
        backbone = kind(latent_space=self.family, **parts)
        if self.family == "toy":
            backbone.text_length = TOY_TEXT_LENGTH
        if connector is not None:
            backbone.connector = connector
        return backbone


def clip_format(config: FinetuneConfig) -> Format:
    """Size, length and rate of the clips that a recipe trains on."""
    usual = usual_format(config.backbone)
    given = {name: getattr(config, name) for name in ("width", "height", "frames", "fps")}
    return Format(**{name: getattr(usual, name) if value is None else value for name, value in given.items()})


def find_model(config: FinetuneConfig) -> Model:
    """The model that a recipe names: a published one by its hub id, a diffusers folder, or a transformer
    file, of which the header alone is read. Raises TrainingError where none of these is there."""
    if config.backbone == "toy" and not config.dit:
        return Model("toy", from_file("toy", TOY_WEIGHTS / "toy_dit.safetensors"))
    if config.dit:
        return Model(config.backbone, from_file(config.backbone, config.dit))
    source = config.source or DEFAULT_SOURCE[config.backbone]
    if source in PUBLISHED:
        return Model(config.backbone, dict(PUBLISHED[source]))
    path = Path(source) / "transformer" / "config.json"
    if not path.is_file():
        raise TrainingError(
            f"the sizes of {source!r} are not known; name one of {', '.join(PUBLISHED)}, a diffusers folder, "
            f"or a transformer file with --dit."
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return Model(config.backbone, {key: value for key, value in found.items() if not key.startswith("_")})


def from_file(family: str, path: Path) -> dict[str, Any]:
    """Arguments of the transformer in a safetensors file. Raises TrainingError where it is none."""
    import safetensors

    kind = KINDS[family]
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {strip_prefix(name): file.get_slice(name).get_shape() for name in names}
        state = {
            renamed(name, kind.renamed): torch.empty(shape, device="meta") for name, shape in shapes.items()
        }
        keys = kind.backbone.dit_keys
        return kind.dit_config(state if is_native(state, keys) else to_native(state, keys))
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{Path(path).name} is no {family} transformer ({error}); use its fp16 or bf16 file."
        ) from error
