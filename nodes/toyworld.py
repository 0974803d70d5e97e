"""Toy world nodes: tiny models that sample on a laptop's CPU, and a score of how well a clip keeps its
world's law."""

from __future__ import annotations

import json
from typing import Any

import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..methods.weights import WeightsError, read_info
from ..toyworld.canvas import FRAMES, SIZE
from ..toyworld.prompts import understand
from ..toyworld.scores import Scores, evaluate
from ..toyworld.text import ToyTextEncoder
from ..toyworld.worlds import WORLDS
from .host.files import SHIPPED_FOLDER
from .views import figures

CATEGORY = "latent physics/toy world"
FROM_PROMPT = "from the prompt"
SHIFT = 3.0
"""Noise shift the toy model was trained with."""


class LoadToyWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLoadToyWorld",
            display_name="Load Toy World",
            category=CATEGORY,
            description="Loads the tiny video model that comes with the pack: Wan's architecture, "
            f"{SIZE} x {SIZE} pixels, {FRAMES} frames, "
            "a few seconds per clip on a CPU. It draws eight small physical worlds, and gets their physics "
            "wrong often enough "
            "to be helped.",
            search_aliases=["toy", "demo", "physics", "tiny model"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    tooltip=f"The video model, for KSampler. {SIZE} x {SIZE} pixels, {FRAMES} frames."
                ),
                io.Clip.Output(
                    tooltip="The text encoder, for CLIP Text Encode. It knows the toy worlds' few words."
                ),
                io.Vae.Output(tooltip="The VAE, for VAE Decode."),
            ],
        )

    @classmethod
    def validate_inputs(cls) -> bool | str:
        try:
            for name in ("vae", "dit", "text"):
                read_info(SHIPPED_FOLDER / f"toy_{name}.safetensors")
        except WeightsError as error:
            return f"the pack's toyworld/weights folder is incomplete: {error}"
        return True

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        model = comfy.sd.load_diffusion_model(str(SHIPPED_FOLDER / "toy_dit.safetensors"))
        vae = comfy.sd.VAE(
            sd=comfy.utils.load_torch_file(str(SHIPPED_FOLDER / "toy_vae.safetensors"), safe_load=True)
        )
        clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(ToyTokenizer, ToyTextModel))
        return io.NodeOutput(ModelSamplingSD3().patch(model, SHIFT)[0], clip, vae)


class ToyTokenizer:
    """The tokenizer of a CLIP. Weights in the prompt are ignored."""

    def __init__(
        self, embedding_directory: str | None = None, tokenizer_data: dict[str, Any] | None = None
    ) -> None:
        self.encoder = ToyTextEncoder.load(SHIPPED_FOLDER / "toy_text.safetensors")

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list[list[tuple]]]:
        ids = self.encoder.tokenise([text])[0].tolist()
        tail = (0,) if return_word_ids else ()
        return {"toy": [[(number, 1.0, *tail) for number in ids]]}

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        names = ["", "?", *self.encoder.words]
        return [(pair, names[pair[0]]) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class ToyTextModel(nn.Module):
    """The text model of a CLIP."""

    disable_offload = True
    dtypes = (torch.float32,)

    def __init__(
        self, dtype: torch.dtype | None = None, device: torch.device | None = None, model_options: Any = None
    ) -> None:
        super().__init__()
        self.encoder = ToyTextEncoder.load(SHIPPED_FOLDER / "toy_text.safetensors").to(device)

    def encode_token_weights(
        self, tokens: dict[str, list[list[tuple]]]
    ) -> tuple[Tensor, None, dict[str, Any]]:
        device = self.encoder.position.device
        ids = torch.tensor([[pair[0] for pair in row] for row in tokens["toy"]], device=device)
        found, mask = self.encoder.encode(ids)
        return found, None, {"attention_mask": mask.long()}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """There are no layers to choose from."""

    def reset_clip_options(self) -> None:
        """See set_clip_options."""

    def load_sd(self, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        return self.encoder.load_state_dict(state, strict=False)


class LawScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLawScore",
            display_name="Law Score",
            category=CATEGORY,
            description="Measures from pixels alone how well toy-world clips keep their law, whether what "
            "the prompt asked "
            "for is there, how much moves, and whether things stay what they are.",
            search_aliases=["toy", "physics", "metric", "evaluate"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip=f"Decoded toy-world clips, {SIZE} x {SIZE} pixels, one after another."
                ),
                io.Combo.Input(
                    "world",
                    options=[FROM_PROMPT, *WORLDS],
                    tooltip="Law to hold the clips to; by default the one whose words the prompt uses.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="The prompt the clips were made from."
                ),
                io.Int.Input(
                    "frames",
                    default=FRAMES,
                    min=12,
                    max=4096,
                    tooltip="Frames per clip, where several clips follow one another.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="law",
                    tooltip="Mean law score: 1 like real clips of the world, 0 like shuffled frames.",
                ),
                io.Float.Output(
                    display_name="adherence",
                    tooltip="Mean adherence: 1 where scenery, colours and sizes are as asked.",
                ),
                io.Float.Output(
                    display_name="dynamic_degree",
                    tooltip="Mean motion over that of real clips; 0 is a still.",
                ),
                io.Image.Output(display_name="plot", tooltip="The scores of every clip."),
                io.String.Output(
                    display_name="table", tooltip="The same as JSON, with the residual behind the law score."
                ),
            ],
        )

    @classmethod
    def execute(cls, images: Tensor, world: str, prompt: str, frames: int) -> io.NodeOutput:
        name = _world(world, prompt)
        if len(images) % frames:
            raise ValueError(
                f"{len(images)} images are no whole number of clips of {frames} frames; set frames to a "
                f"clip's length."
            )
        clips = images[..., :3].reshape(-1, frames, *images.shape[1:3], 3).movedim(-1, 1)
        scores = evaluate(clips, name, [prompt] * len(clips))
        image = figures.plot(_panels(scores), title=f"{name}: {WORLDS[name].law}", height=260)
        means = [float(value.mean()) for value in (scores.law, scores.adherence, scores.dynamic_degree)]
        return io.NodeOutput(*means, image, _table(name, scores), ui=figures.preview_image(image, cls))


def _world(world: str, prompt: str) -> str:
    """The chosen world, or the prompt's. Raises ValueError where the prompt names none."""
    if world != FROM_PROMPT:
        return world
    found = understand(prompt).world
    if found is None:
        raise ValueError(
            f"the prompt {prompt!r} uses no toy world's words: choose the world, or use words such as ball, "
            f"spring, dye."
        )
    return found


def _panels(scores: Scores) -> list[figures.Panel]:
    names = ("law", "adherence", "dynamic_degree", "permanence")
    curves = {name.replace("_", " "): getattr(scores, name) for name in names}
    count = len(scores.law)
    lines = [
        figures.Curve(label=f"{label} (mean {values.mean():.2f})", x=list(range(count)), y=values.tolist())
        for label, values in curves.items()
    ]
    return [
        figures.Panel(
            title="scores (1 = like real clips)", x_label="clip", x_range=(-0.5, count - 0.5), curves=lines
        )
    ]


def _table(name: str, scores: Scores) -> str:
    columns = {label: [round(value, 4) for value in found.tolist()] for label, found in vars(scores).items()}
    return json.dumps({"world": name, **columns})


NODES = [LoadToyWorld, LawScore]
