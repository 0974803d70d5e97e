"""PILA nodes: load an adapter, correct a MODEL with it, see routing, experts and fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io

from ..methods.pila import (
    CATEGORIES,
    PilaAdapter,
    PilaCorrection,
    PilaSettings,
    PilaTrace,
    label_vector,
    load_adapter,
)
from ..methods.pila.config import PilaConfig
from ..methods.pila.correction import BRANCHES, STAGES, WAN22_BOUNDARY, WAN22_I2V_BOUNDARY
from ..methods.pila.files import KIND, build_method
from ..methods.weights import WeightsError, WeightsInfo
from .host import files, patching, spaces
from .prompt import PhysicsLabelsType

CATEGORY = "latent physics/pila"
PilaAdapterType = io.Custom("PILA_ADAPTER")
DEFAULT_TOP_K = -1
OWN_BOUNDARY = -1.0


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """Value of a PILA_ADAPTER wire."""

    name: str
    """The file's name in the loader's menu."""
    patcher: comfy.model_patcher.ModelPatcher
    """The network under ComfyUI's memory management."""
    info: WeightsInfo
    """Metadata of the file."""

    @property
    def network(self) -> PilaAdapter:
        return self.patcher.model


def check_fits(info: WeightsInfo, space: str | None, name: str) -> None:
    """Raises WeightsError where a file is no adapter, or was trained on another latent space than the
    MODEL's."""
    if info.kind != KIND:
        raise WeightsError(f"{name} holds a {info.kind}, not a PILA adapter.")
    if space is not None and space != info.latent_space:
        raise WeightsError(
            f"{name} was trained on {info.latent_space} latents, but this MODEL samples {space} latents; "
            f"wire a {info.latent_space} model, or load an adapter for {space}."
        )


def check_flow(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raises ValueError where the MODEL does not predict a flow's velocity, which is what an adapter
    corrects."""
    sampling = model.get_model_object("model_sampling")
    sigma = torch.tensor([0.25, 0.75])
    gain = patching.gain(sampling, sigma)
    if not torch.allclose(gain, sigma, atol=1e-4):
        raise ValueError(
            "PILA corrects the velocity of flow models; this MODEL predicts something else (noise, or v)."
        )


def describe(name: str, info: WeightsInfo) -> str:
    """A file's metadata for a person."""
    lines = [f"{name}: PILA adapter for {info.latent_space} latents"]
    return "\n".join(
        lines + [f"{key}: {value}" for part in (info.config, info.recipe) for key, value in part.items()]
    )


def build(architecture: str, config: PilaConfig, operations: Any) -> PilaAdapter:
    """An adapter of any architecture; the ablations are only imported for a file that holds one. Raises
    ValueError."""
    if architecture == PilaAdapter.architecture:
        return build_method(architecture, config, operations)
    from ..training.study import ablations

    return ablations.build(architecture, config, operations)


def boundary_of(model: comfy.model_patcher.ModelPatcher) -> float:
    """The noise level at which Wan 2.2 14B changes models: 0.9 for image to video, 0.875 for text to
    video."""
    return WAN22_I2V_BOUNDARY if getattr(model.model, "image_to_video", False) else WAN22_BOUNDARY


class LoadPilaAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsLoadPilaAdapter",
            display_name="Load PILA Adapter",
            category=CATEGORY,
            description="Loads an adapter that was trained to correct a video model's velocity towards "
            "physics. It fits one "
            "latent space; one trained on Wan 2.1 also fits Wan 2.2 14B, which has the same latents.",
            search_aliases=["pila", "physics", "adapter"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=files.list_files(KIND),
                    tooltip="A file in models/latent_physics, written by `latent-physics pila`. Names that "
                    "begin with toy/ come "
                    "with the pack and fit the toy world.",
                ),
            ],
            outputs=[
                PilaAdapterType.Output(
                    display_name="adapter", tooltip="The network, for PILA Correction and the PILA views."
                ),
                io.String.Output(
                    display_name="info",
                    tooltip="The file's metadata: latent space, sizes, training.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        if name is None:  # from another node, in a moment
            return True
        try:
            check_fits(files.file_info(name), None, name)
        except WeightsError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        return files.fingerprint(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            network, info = load_adapter(files.find_file(name), comfy.ops.manual_cast, build)
        return io.NodeOutput(
            LoadedAdapter(name=name, patcher=patching.manage(network), info=info), describe(name, info)
        )


class PilaCorrectionNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsPilaCorrection",
            display_name="PILA Correction",
            category=CATEGORY,
            description="While the sampler runs, corrects the model's velocity with a PILA adapter. Labels "
            "say which physical "
            "experts to prefer. Put it between the model loader and the sampler; other corrections can "
            "follow.",
            search_aliases=["pila", "physics", "adapter", "correction"],
            inputs=[
                io.Model.Input("model", tooltip="A flow model whose latents the adapter was trained on."),
                PilaAdapterType.Input("adapter", tooltip="From Load PILA Adapter."),
                PhysicsLabelsType.Input(
                    "labels",
                    optional=True,
                    tooltip="From Physics Prompt Parser or Physics Labels. Without labels the router "
                    "decides alone.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Share of the correction that is applied. 1 is the correction the adapter was "
                    "trained for, 0 "
                    "leaves the model exactly as it was.",
                ),
                io.Int.Input(
                    "top_k",
                    default=DEFAULT_TOP_K,
                    min=DEFAULT_TOP_K,
                    max=len(CATEGORIES),
                    tooltip="Number of experts that work on each video. -1 takes the file's number (the paper's "
                    "is 4); 0 runs none, "
                    "and only what the adapter sees without them is used.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of this sampler's steps that are left alone at the start. The paper "
                    "corrects all steps.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of this sampler's steps after which correcting stops.",
                ),
                io.Float.Input(
                    "sigma_floor",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the correction applied at pure noise; rises to 1 as noise falls. -1 "
                    "takes the file's (the "
                    "paper's is 0.05).",
                    advanced=True,
                ),
                io.Combo.Input(
                    "stage",
                    options=list(STAGES),
                    default=STAGES[0],
                    tooltip="For models split by noise, such as Wan 2.2 14B: correct everywhere, only above "
                    "the boundary (high "
                    "noise), or only below it (low noise). One node on each of the two models with 'any' "
                    "corrects both.",
                    advanced=True,
                ),
                io.Float.Input(
                    "boundary",
                    default=OWN_BOUNDARY,
                    min=OWN_BOUNDARY,
                    max=1.0,
                    step=0.005,
                    tooltip="The noise level that divides the stages. -1 takes the MODEL's: Wan 2.2 changes "
                    "models at 0.875 "
                    "for text to video and at 0.9 for image to video.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "keep_for_maps",
                    default=False,
                    tooltip="Keep latents of about four steps in memory for the Expert Maps node.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "branch",
                    options=list(BRANCHES),
                    default=BRANCHES[0],
                    tooltip="Prediction that is corrected. conditional: the prompt's, before CFG, as the "
                    "adapter was trained; "
                    "strength then means the same at every CFG. both: also the negative prompt's, at twice "
                    "the cost. guided: "
                    "the result of CFG.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the correction, for any sampler.")],
        )

    @classmethod
    def validate_inputs(cls, start: float | None, end: float | None) -> bool | str:
        if start is None or end is None or start <= end:  # None: from another node, in a moment
            return True
        return f"start is {start} and end is {end}: start must not be after end."

    @classmethod
    def execute(
        cls,
        model: comfy.model_patcher.ModelPatcher,
        adapter: LoadedAdapter,
        strength: float,
        top_k: int,
        start: float,
        end: float,
        sigma_floor: float = -1.0,
        stage: str = STAGES[0],
        boundary: float = OWN_BOUNDARY,
        keep_for_maps: bool = False,
        branch: str = BRANCHES[0],
        labels: dict[str, float] | None = None,
    ) -> io.NodeOutput:
        spaces.require_video_model(model, "PILA Correction")
        check_fits(adapter.info, spaces.latent_space(model), adapter.name)
        check_flow(model)
        with torch.inference_mode(False):
            settings = PilaSettings(
                labels=label_vector(labels) if labels else None,
                strength=strength,
                top_k=None if top_k == DEFAULT_TOP_K else top_k,
                sigma_floor=None if sigma_floor < 0 else sigma_floor,
                start=start,
                end=end,
                stage=stage,
                boundary=boundary_of(model) if boundary < 0 else boundary,
                branch=branch,
                trace=PilaTrace(keep_snapshots=keep_for_maps),
            )
        correction = PilaCorrection(adapter.network, settings)
        return io.NodeOutput(
            patching.add_correction(
                model,
                correction,
                networks=[adapter.patcher],
                key="latent_physics.pila",
                title="PILA Correction",
            )
        )


NODES = [LoadPilaAdapter, PilaCorrectionNode]
