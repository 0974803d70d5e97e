"""The pictures of the template browser, made from what the toy graphs put out. Needs Pillow, unlike the rest of this folder.

The toy graphs run as they are shipped. The other ones need a GPU and large models; their picture is what Motion Drift Heatmap
shows of a clip that the same family of models made, one of those that come with ComfyUI's template packages.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from .server import ComfyServer, output_files
from .shell import BenchError, say

WIDTH, LABEL = 640, 26
"""Of a thumbnail, and of a line of text above a row, in pixels."""
PAPER, INK = (24, 24, 28), (235, 235, 235)

REAL_CLIPS = {
    "wan2.1_t2v_1.3B_lamo": ("text_to_video_wan-1.webp", "where a clip of Wan 2.1 moves", (416, 240)),
    "wan2.2_t2v_14B_lamo": ("video_wan2_2_14B_t2v-1.webp", "where a clip of Wan 2.2 14B moves", (320, 320)),
    "cogvideox_lamo": ("utility_void_video_inpainting-1.webp", "where a clip of VOID (CogVideoX) moves", (320, 320)),
}
"""Workflow -> animation of the template packages, caption, size to look at it in."""


def make_thumbnails(server: ComfyServer, folder: Path) -> None:
    """Writes folder/NAME.jpg for every workflow. Raises BenchError where a graph fails or an animation is not installed."""
    for name, picture in (
        ("toy_world_lamo", side_by_side),
        ("motion_heatmaps", heatmaps),
        ("toy_world_score", eight_clips),
    ):
        graph = json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8"))
        save(picture(Outputs(server, graph)), folder / f"{name}.jpg")
    for name, (clip, caption, size) in REAL_CLIPS.items():
        frames = Outputs(server, heat_of_clip(server, clip, size)).frames("LatentPhysicsMotionDriftHeatmap")
        tiles = [fitted(frame, WIDTH // 2) for frame in spread(frames, 4)]
        save(stacked([label(caption), row(tiles[:2]), row(tiles[2:])]), folder / f"{name}.jpg")


class Outputs:
    """What a graph wrote, by the type of the node that wrote it."""

    def __init__(self, server: ComfyServer, graph: dict[str, Any]) -> None:
        self.server, self.graph = server, graph
        self.files = list(output_files(server.run(graph, timeout=1800)))

    def frames(self, kind: str) -> list[Image.Image]:
        """All frames of the first file of the first node of this type."""
        for node, item in self.files:
            if self.graph[node]["class_type"] == kind:
                with Image.open(self.server.path_of(item)) as image:
                    return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        raise BenchError(f"the graph wrote no file with {kind}.")


def side_by_side(outputs: Outputs) -> Image.Image:
    """Four moments of the plain clip above the same moments of the guided one."""
    frames = spread(outputs.frames("SaveAnimatedWEBP"), 5)
    half = frames[0].height
    plain = [frame.crop((0, 0, half, half)) for frame in frames]
    guided = [frame.crop((frame.width - half, 0, frame.width, half)) for frame in frames]
    parts = [label("without LaMo"), row(plain), label("with LaMo, same seed"), row(guided)]
    return stacked(parts)


def heatmaps(outputs: Outputs) -> Image.Image:
    rows = []
    for kind, text in (("MotionDriftHeatmap", "motion drift"), ("MotionFieldHeatmap", "motion field (predictor)")):
        frames = outputs.frames(f"LatentPhysics{kind}")
        rows += [label(text), row(spread(frames[: len(frames) * 3 // 4], 5))]  # the last frames have no successor, so no heat
    return stacked(rows)


def eight_clips(outputs: Outputs) -> Image.Image:
    """The middle of each clip, and the plot of their scores."""
    frames = outputs.frames("SaveAnimatedWEBP")
    length = len(frames) // 8
    middle = [frames[clip * length + length // 2] for clip in range(8)]
    plot = outputs.frames("LatentPhysicsLawScore")[0]
    return stacked([row(middle), fitted(plot, WIDTH)])


def heat_of_clip(server: ComfyServer, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """A graph that shows where an installed animation moves, through the toy world's VAE."""
    shutil.copy(installed(name), server.base / "input" / name)
    scaled = {"image": ["2", 0], "upscale_method": "area", "width": size[0], "height": size[1], "crop": "center"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 33}},
        "3": {"class_type": "ImageScale", "inputs": scaled},
        "4": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["4", 2]}},
        "6": {
            "class_type": "LatentPhysicsMotionDriftHeatmap",
            "inputs": {"latent": ["5", 0], "lag": 2, "opacity": 0.7, "scale_mask": False},
        },
    }


def installed(name: str) -> Path:
    """The file of that name in the template packages. Raises BenchError where none has it."""
    for package in ("video", "other", "assets_01", "image"):
        found = importlib.util.find_spec(f"comfyui_workflow_templates_media_{package}")
        for place in (found.submodule_search_locations or []) if found else []:
            if (path := Path(place) / "templates" / name).is_file():
                return path
    raise BenchError(f"{name} is in none of the installed comfyui_workflow_templates_media packages.")


# --- composing ------------------------------------------------------------------------------------------------------------------


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
