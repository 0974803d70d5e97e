"""A PILA adapter's work while it sampled, as plots, maps and frames."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy_api.latest import io
from torch import Tensor

from ..methods.pila import (
    CATEGORIES,
    PilaCorrection,
    expert_maps,
)
from ..methods.video_models import SPACES, TOY
from .host import patching, spaces, wires
from .pila import CATEGORY, LoadedAdapter, PilaAdapterType
from .views import figures
from .views.fields import FIELD_MENU, over_frames, paint, under_frames
from .views.traces import expert_report, router_panels, router_table


def pila_of(model: comfy.model_patcher.ModelPatcher, node: str) -> PilaCorrection:
    """The last PILA correction of a MODEL. Raises ValueError where there is none, or where none of its steps
    has run."""
    found = [
        correction for _, correction in patching.corrections(model) if isinstance(correction, PilaCorrection)
    ]
    if not found:
        raise ValueError(
            f"{node} was given a MODEL without PILA Correction: wire the MODEL that PILA Correction puts out."
        )
    if not found[-1].settings.trace.index:
        raise ValueError(
            f"{node} found nothing: no sampler ran with this MODEL, or none of its steps was corrected."
        )
    return found[-1]


def _traced_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that PILA Correction gave to the sampler."),
        io.Latent.Input(
            "latent", tooltip="The sampler's output. Only used to run this node after the sampler."
        ),
    ]


class RouterPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsRouterPlot",
            display_name="Router Plot",
            category=CATEGORY,
            description="Plots which experts PILA Correction used at each step of the last run, and how "
            "large the correction "
            "was.",
            search_aliases=["pila", "router", "experts", "plot"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=_traced_inputs(),
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip="Routing weight of each expert, and |correction| / |velocity|.",
                ),
                io.String.Output(display_name="table", tooltip="The same numbers as comma-separated text."),
            ],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher, latent: dict[str, Any]) -> io.NodeOutput:
        trace = pila_of(model, "Router Plot").settings.trace
        image = figures.plot(router_panels(trace), height=420)
        return io.NodeOutput(image, router_table(trace), ui=figures.preview_image(image, cls))


class ExpertMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsExpertMaps",
            display_name="Expert Maps",
            category=CATEGORY,
            description="Shows where an expert of PILA Correction acts: how much the correction changes "
            "because of it alone. "
            "Needs keep_for_maps on in PILA Correction.",
            search_aliases=["pila", "experts", "heatmap"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                *_traced_inputs(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded video of the same run, to lay the maps over.",
                ),
                io.Combo.Input(
                    "expert",
                    options=["strongest", *CATEGORIES],
                    tooltip="Expert to show. strongest: the one with the largest routing weight at "
                    "that step.",
                ),
                io.Float.Input(
                    "position",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Number of the kept step to look at: 0 is the noisiest, 1 the last.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the strongest place over the video.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The video under the map; the strongest place is the brightest.",
                ),
                io.Mask.Output(
                    display_name="maps", tooltip="One map per latent frame; the clip's largest value is 1."
                ),
                io.String.Output(
                    display_name="report", tooltip="Experts that ran at that step, and their weights."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: comfy.model_patcher.ModelPatcher,
        latent: dict[str, Any],
        expert: str,
        position: float,
        opacity: float,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        correction = pila_of(model, "Expert Maps")
        trace = correction.settings.trace
        if not trace.snapshots:
            raise ValueError("Expert Maps needs keep_for_maps switched on in PILA Correction.")
        snapshot = trace.snapshots[round(position * (len(trace.snapshots) - 1))]
        if images is not None:
            check_whole(images, snapshot.x0, spaces.latent_space(model))
        patcher = _patcher_of(model, correction)
        maps = _on_device(patcher, correction, snapshot.x0, lambda: expert_maps(
            correction.adapter, snapshot, correction.settings.labels, correction.settings.top_k
        ))  # fmt: skip
        weights = trace.weights[trace.index.index(snapshot.index)]
        chosen = weights.index(max(weights)) if expert == "strongest" else CATEGORIES.index(expert)
        scaled = figures.unit_range(maps[:, chosen])
        shown = over_frames(scaled, images, opacity)
        text = expert_report(snapshot.index, weights, CATEGORIES[chosen])
        return io.NodeOutput(shown, scaled.flatten(0, 1), text, ui=figures.preview_video(shown, cls))


def check_whole(images: Tensor, kept: Tensor, space: str) -> None:
    """Raises ValueError where a kept latent `B C T H W` is of another length than the decoded clips: before
    CFG a correction sees one context window after another, and the first is kept."""
    rule, frames = SPACES.get(space, TOY).frames, len(images) // len(kept)
    if rule.fits(frames) and rule.latent_frames(frames) != kept.shape[2]:
        raise ValueError(
            f"PILA Correction saw {kept.shape[2]} latent frames at once and these images are "
            f"{rule.latent_frames(frames)}: wire this run's decoded video, and with context windows set branch "
            "to guided."
        )


def _patcher_of(
    model: comfy.model_patcher.ModelPatcher, correction: PilaCorrection
) -> comfy.model_patcher.ModelPatcher:
    for patchers in model.additional_models.values():
        for patcher in patchers:
            if patcher.model is correction.adapter:
                return patcher
    raise ValueError("the MODEL lost its PILA adapter; run PILA Correction again.")


def _on_device(
    patcher: comfy.model_patcher.ModelPatcher, correction: PilaCorrection, latent: Tensor, work: Any
) -> Any:
    """Runs `work` with the adapter's weights on the device."""
    comfy.model_management.load_models_gpu(
        [patcher], memory_required=correction.memory_required(tuple(latent.shape))
    )
    with torch.inference_mode(False), patching.resident([patcher], patcher.load_device):
        return work()


class AttributeBankView(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentPhysicsAttributeBankView",
            display_name="Attribute Bank View",
            category=CATEGORY,
            description="Shows what a PILA adapter reads out of a video: velocity as colours, pressure, "
            "density, temperature and "
            "the other fields as maps. They are proxies without units, learned from motion and laws, not "
            "measurements.",
            search_aliases=["pila", "fields", "flow", "pressure", "density"],
            is_output_node=True,
            has_intermediate_output=True,
            inputs=[
                io.Latent.Input("latent", tooltip="A video latent: a sampler's output, or an encoded video."),
                PilaAdapterType.Input(
                    "adapter", tooltip="From Load PILA Adapter; trained on this latent's space."
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded video of the same latent, shown dimmed underneath.",
                ),
                io.Combo.Input("field", options=list(FIELD_MENU), tooltip="Slot of the bank to show."),
                io.Float.Input(
                    "noise_level",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The noise level the adapter is told. 0 is right for a finished video.",
                    advanced=True,
                ),
                io.Float.Input(
                    "opacity",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the field over the video.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="view", tooltip="The field: a picture per latent frame, or per image."
                ),
                io.Mask.Output(
                    display_name="field",
                    tooltip="The field's size, a map per latent frame, 0..1 over the clip.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        latent: dict[str, Any],
        adapter: LoadedAdapter,
        field: str,
        noise_level: float,
        opacity: float,
        images: Tensor | None = None,
    ) -> io.NodeOutput:
        network, correction = adapter.network, PilaCorrection(adapter.network)
        video = wires.finite_video(latent, "no fields to show")
        correction.check(tuple(video.shape))
        form = spaces.latent_format(adapter.info.latent_space)
        inside = video if form is None else form.process_in(video)
        device = adapter.patcher.load_device

        def work() -> dict[str, Tensor]:
            with torch.no_grad():
                return network.estimate(
                    inside.clone().to(device), torch.full((len(inside),), noise_level, device=device)
                )

        values = _on_device(adapter.patcher, correction, inside, work)[FIELD_MENU[field]].float().cpu()
        colours, size = paint(values)
        shown = under_frames(colours, images, opacity)
        return io.NodeOutput(shown, size.flatten(0, 1), ui=figures.preview_video(shown, cls))


NODES = [RouterPlot, ExpertMaps, AttributeBankView]
