"""The pictures of the template browser, made from what the toy graphs put out. Needs Pillow, unlike the rest
of this folder.

The toy graphs run as they are shipped. The other ones need a GPU and large models; their picture is what
Motion Drift Heatmap shows of a clip that the same family of models made, one of those that come with
ComfyUI's template packages.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from ..server import ComfyServer, output_files
from ..shell import BenchError, say

WIDTH, LABEL = 640, 26
"""Of a thumbnail, and of a line of text above a row, in pixels."""
PAPER, INK = (24, 24, 28), (235, 235, 235)

WAN21, WAN22 = "where a clip of Wan 2.1 moves", "where a clip of Wan 2.2 14B moves"
VOID = "where a clip of VOID (CogVideoX) moves"
REAL_CLIPS = {
    "wan2.1_t2v_1.3B_lamo": ("text_to_video_wan-1.webp", WAN21, (416, 240)),
    "wan2.1_t2v_1.3B_pila": ("image_to_video_wan-1.webp", WAN21, (320, 320)),
    "wan2.1_t2v_1.3B_pila_lamo": ("video_wan_vace_14B_t2v-1.webp", WAN21, (320, 320)),
    "wan2.2_t2v_14B_lamo": ("video_wan2_2_14B_t2v-1.webp", WAN22, (320, 320)),
    "wan2.2_t2v_14B_pila": ("video_wan2_2_14B_i2v-1.webp", WAN22, (320, 320)),
    "cogvideox_lamo": ("utility_void_video_inpainting-1.webp", VOID, (320, 320)),
}
"""Workflow -> animation of the template packages, caption, size to look at it in."""


def make_thumbnails(server: ComfyServer, folder: Path, names: Sequence[str] = ()) -> None:
    """Writes folder/NAME.jpg for the named workflows, or all of them. One that fails does not stop the
    others.

    Raises BenchError at the end, if a graph failed or an animation is not installed.
    """
    failed = []
    for name in names or sorted(path.stem for path in (folder / "api").glob("*.json")):
        try:
            save(picture_of(server, folder, name), folder / f"{name}.jpg")
        except BenchError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise BenchError(" ".join(failed))


def picture_of(server: ComfyServer, folder: Path, name: str) -> Image.Image:
    if name in REAL_CLIPS:
        clip, caption, size = REAL_CLIPS[name]
        frames = Outputs(server, heat_of_clip(server, clip, size)).frames("LatentPhysicsMotionDriftHeatmap")
        tiles = spread(frames, 4)
        return stacked([label(caption), row(tiles[:2]), row(tiles[2:])])
    if name not in TOY:
        raise BenchError(
            "no picture is defined for this workflow: add it to TOY or REAL_CLIPS in thumbnails.py."
        )
    return TOY[name](
        Outputs(server, json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8")))
    )


class Outputs:
    """What a graph wrote, by the type of the node that wrote it."""

    def __init__(self, server: ComfyServer, graph: dict[str, Any]) -> None:
        self.server, self.graph = server, graph
        self.files = list(output_files(server.run(graph, timeout=1800)))

    def frames(self, kind: str, number: int = 0) -> list[Image.Image]:
        """All frames of one file that nodes of this type wrote: the first, or the one of this number in the
        graph's order.
        """
        found = [(int(node), item) for node, item in self.files if self.graph[node]["class_type"] == kind]
        if number >= len(found):
            raise BenchError(
                f"the graph wrote {len(found)} files with {kind}; number {number + 1} was wanted."
            )
        _, item = sorted(found, key=lambda pair: pair[0])[number]
        with Image.open(self.server.path_of(item)) as image:
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]


def columns(picture: Image.Image, count: int) -> list[Image.Image]:
    """The square clips that were put side by side with a border between them."""
    step = (picture.width - picture.height) / max(count - 1, 1)
    lefts = [round(number * step) for number in range(count)]
    return [picture.crop((left, 0, left + picture.height, picture.height)) for left in lefts]


def side_by_side(outputs: Outputs, *texts: str) -> Image.Image:
    """The same five moments of each of the clips that were put side by side, a row per clip."""
    moments = [columns(frame, len(texts)) for frame in spread(outputs.frames("SaveAnimatedWEBP"), 5)]
    parts = []
    for number, text in enumerate(texts):
        parts += [label(text), row([moment[number] for moment in moments])]
    return stacked(parts)


def overlays(outputs: Outputs, *views: tuple[str, str]) -> Image.Image:
    """Five moments of what each of these nodes shows: (type, text), a type given twice for its second
    node.
    """
    parts, kinds = [], []
    for kind, text in views:
        frames = outputs.frames(f"LatentPhysics{kind}", kinds.count(kind))
        kinds.append(kind)
        if kind.startswith(
            "Motion"
        ):  # see heat_of_clip for the first frame; the last ones have no successor, so no heat
            frames = frames[1 : len(frames) * 3 // 4]
        parts += [label(text), row(spread(frames, 5))]
    return stacked(parts)


def eight_clips(outputs: Outputs) -> Image.Image:
    """The middle of each clip, and the plot of their scores."""
    frames = outputs.frames("SaveAnimatedWEBP")
    length = len(frames) // 8
    middle = [frames[clip * length + length // 2] for clip in range(8)]
    plot = outputs.frames("LatentPhysicsLawScore")[0]
    return stacked([row(middle), fitted(plot, WIDTH)])


TOY: dict[str, Callable[[Outputs], Image.Image]] = {
    "toy_world_lamo": lambda outputs: side_by_side(outputs, "without LaMo", "with LaMo, same seed"),
    "toy_world_pila": lambda outputs: side_by_side(
        outputs, "plain", "with LaMo", "with PILA", "with both, same seed"
    ),
    "motion_heatmaps": lambda outputs: overlays(
        outputs, ("MotionDriftHeatmap", "motion drift"), ("MotionFieldHeatmap", "motion field (predictor)")
    ),
    "pila_views": lambda outputs: overlays(
        outputs, ("ExpertMaps", "where an expert acts"), ("AttributeBankView", "velocity")
    ),
    "toy_world_score": eight_clips,
    "toy_world_best_of_n": lambda outputs: stacked(
        [
            label("the most plausible of eight seeds"),
            row(spread(outputs.frames("SaveAnimatedWEBP"), 5)),
            fitted(outputs.frames("LatentPhysicsBestOfNSampler")[0], WIDTH),
        ]
    ),
    "toy_train_predictor": lambda outputs: stacked(
        [
            label("guided by the predictor the graph trained"),
            row(spread(outputs.frames("SaveAnimatedWEBP"), 5)),
        ]
    ),
    "correspondence_map": lambda outputs: overlays(
        outputs,
        ("CorrespondenceMap", "where the model sees the chosen point in every frame"),
        ("CorrespondenceMap", "where the video encoder sees it"),
    ),
}
"""Workflow -> its picture, from what it put out."""


def heat_of_clip(server: ComfyServer, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """A graph that shows where an installed animation moves, through the toy world's VAE."""
    shutil.copy(installed(name), server.base / "input" / name)
    scaled = {
        "image": ["2", 0],
        "upscale_method": "area",
        "width": size[0],
        "height": size[1],
        "crop": "center",
    }
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 33}},
        "3": {"class_type": "ImageScale", "inputs": scaled},
        "4": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["4", 2]}},
        # The first latent frame holds one image, the others four each: what lies between them is no motion.
        "6": {
            "class_type": "LatentCut",
            "inputs": {"samples": ["5", 0], "dim": "t", "index": 1, "amount": 8},
        },
        "7": {
            "class_type": "LatentPhysicsMotionDriftHeatmap",
            "inputs": {"latent": ["6", 0], "lag": 2, "opacity": 0.7, "scale_mask": False},
        },
    }


def installed(name: str) -> Path:
    """The file of that name in the template packages. Raises BenchError if none has it."""
    for package in ("video", "other", "assets_01", "image"):
        found = importlib.util.find_spec(f"comfyui_workflow_templates_media_{package}")
        for place in (found.submodule_search_locations or []) if found else []:
            if (path := Path(place) / "templates" / name).is_file():
                return path
    raise BenchError(f"{name} is in none of the installed comfyui_workflow_templates_media packages.")


# --- composing ----------------------------------------------------------------------------------------------


def spread(frames: list[Image.Image], count: int) -> list[Image.Image]:
    """`count` frames, evenly spaced, the first and the last among them."""
    return [frames[round(number * (len(frames) - 1) / (count - 1))] for number in range(count)]


def fitted(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(width * picture.height / picture.width)), Image.Resampling.LANCZOS)


def row(tiles: list[Image.Image]) -> Image.Image:
    """Tiles beside one another, as wide as a thumbnail."""
    tiles = [fitted(tile, WIDTH // len(tiles) - 2) for tile in tiles]
    canvas = Image.new("RGB", (WIDTH, tiles[0].height + 2), PAPER)
    for number, tile in enumerate(tiles):
        canvas.paste(tile, (1 + number * WIDTH // len(tiles), 1))
    return canvas


def label(text: str) -> Image.Image:
    canvas = Image.new("RGB", (WIDTH, LABEL), PAPER)
    ImageDraw.Draw(canvas).text((8, 3), text, fill=INK, font=ImageFont.load_default(size=17))
    return canvas


def stacked(parts: list[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        canvas.paste(part, (0, y))
        y += part.height
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=88, optimize=True)
    say(f"wrote {path.name} ({picture.width} x {picture.height}, {path.stat().st_size // 1024} KiB)")
