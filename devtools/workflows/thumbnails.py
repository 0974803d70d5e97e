"""The pictures of the template browser, made from what the toy graphs put out. Needs Pillow, unlike the rest
of this folder.

Square, bright, and readable where the browser shows them 210 pixels wide. The toy graphs run as they are
shipped. The other ones need a GPU and large models; their picture is what Motion Drift Heatmap shows of a
clip that the same family of models made, one of those that come with ComfyUI's template packages.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from ..server import ComfyServer, output_files
from ..shell import BenchError, say

SIDE, GAP = 640, 4
"""Sizes of a thumbnail, and between its tiles, in pixels."""
BAND, LETTERS = 58, 40
"""Height of a line of text and of its letters: 13 pixels where the template browser shows 210."""
PAPER, INK = (250, 250, 247), (20, 24, 40)


class Clip(NamedTuple):
    """A clip that the same family of models made, from the template packages."""

    file: str
    lines: tuple[str, str]
    """A model, its schedule, and what is to be seen."""


MOVES = "the glow shows what moves"
REAL_CLIPS = {
    "first_predictor": Clip("video_wan_vace_14B_ref2v-1.webp", ("make your own predictor", MOVES)),
    "wan2.1_t2v_1.3B_lamo": Clip("text_to_video_wan-1.webp", ("Wan 2.1 + LaMo", MOVES)),
    "wan2.1_t2v_1.3B_pila": Clip("image_to_video_wan-1.webp", ("Wan 2.1 + PILA", MOVES)),
    "wan2.1_t2v_1.3B_pila_lamo": Clip("video_wan_vace_14B_t2v-1.webp", ("Wan 2.1, PILA + LaMo", MOVES)),
    "wan2.2_t2v_14B_lamo": Clip("video_wan2_2_14B_t2v-1.webp", ("Wan 2.2, 20 steps", MOVES)),
    "wan2.2_t2v_14B_4steps_lamo": Clip("video_wan2_2_14B_t2v-1.webp", ("Wan 2.2, text, 4 steps", MOVES)),
    "wan2.2_i2v_14B_4steps_lamo": Clip(
        "video_wan2_2_14B_fun_inpaint-1.webp", ("Wan 2.2, image, 4 steps", MOVES)
    ),
    "wan2.2_i2v_14B_4steps_side_by_side": Clip(
        "video_wan2_2_14B_flf2v-1.webp", ("Wan 2.2: four ways, 1 seed", MOVES)
    ),
    "wan2.2_t2v_14B_pila": Clip("video_wan2_2_14B_i2v-1.webp", ("Wan 2.2 + PILA", MOVES)),
    "wan2.2_ti2v_5B_lamo": Clip("video_wan2_2_5B_ti2v-1.webp", ("Wan 2.2 5B + LaMo", MOVES)),
    "ltx2.3_two_stage_lamo": Clip("video_ltx2_3_i2v-1.webp", ("LTX-2.3, 8 + 3 steps", MOVES)),
    "minimax_h3_t2v_lamo": Clip("video_minimax_h3_t2v-1.webp", ("MiniMax H3, text", MOVES)),
    "minimax_h3_i2v_lamo": Clip("video_minimax_h3_i2v-1.webp", ("MiniMax H3, image", MOVES)),
    "hunyuanvideo1.5_t2v_lamo": Clip(
        "video_hunyuan_video_1.5_720p_t2v-1.webp", ("HunyuanVideo 1.5, text", MOVES)
    ),
    "hunyuanvideo1.5_i2v_lamo": Clip(
        "video_hunyuan_video_1.5_720p_i2v-1.webp", ("HunyuanVideo 1.5, image", MOVES)
    ),
    "causal_forcing_i2v_lamo": Clip("video_causal_forcing_i2v-1.webp", ("Causal Forcing, 4 steps", MOVES)),
    "cogvideox_lamo": Clip("utility_void_video_inpainting-1.webp", ("CogVideoX 1.5 + LaMo", MOVES)),
}
"""Workflow -> the clip of its picture."""


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
        clip = REAL_CLIPS[name]
        frames = Outputs(server, heat_of_clip(server, clip.file)).frames("LatentPhysicsMotionDriftHeatmap")
        return card(*clip.lines, *grid(spread(lit(frames), 4), 2))
    if name not in TOY:
        raise BenchError(
            "no picture is defined for this workflow: add it to TOY or REAL_CLIPS in thumbnails.py."
        )
    return TOY[name](
        Outputs(server, json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8")))
    )


class Outputs:
    """Files that a graph wrote, by the type of the node that wrote it."""

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
    """The same moments of each of the clips that were put side by side, a row per clip."""
    moments = [columns(frame, len(texts)) for frame in spread(outputs.frames("SaveAnimatedWEBP"), 5)[1:4]]
    rows = [row([moment[number] for moment in moments]) for number in range(len(texts))]
    return card(*(part for pair in zip(texts, rows) for part in pair))


def four_ways(outputs: Outputs, title: str, *texts: str, rows: int = 1) -> Image.Image:
    """A moment of each of four clips, under its name. rows: rows of clips in the pictures that were saved."""
    frame = spread(outputs.frames("SaveAnimatedWEBP"), 5)[2]
    if rows == 1:
        cells = columns(frame, 4)
    else:
        half = frame.height // 2
        cells = [
            part for top in (0, half) for part in columns(frame.crop((0, top, frame.width, top + half)), 2)
        ]
    named = [under(cell, text) for cell, text in zip(cells, texts)]
    return card(title, *grid(named, 2))


def under(cell: Image.Image, text: str) -> Image.Image:
    """A tile of a square of four, with its name on it."""
    tile = cropped(cell, SIDE // 2 - GAP, (SIDE - BAND) // 2 - GAP)
    ImageDraw.Draw(tile).text((10, 4), text, fill=INK, font=ImageFont.load_default(size=LETTERS))
    return tile


def overlays(outputs: Outputs, *views: tuple[str, str]) -> Image.Image:
    """Moments of what each of these nodes shows: (type, text), a type given twice for its second node."""
    parts: list[str | Image.Image] = []
    kinds: list[str] = []
    for kind, text in views:
        frames = outputs.frames(f"LatentPhysics{kind}", kinds.count(kind))
        kinds.append(kind)
        parts += [text, row(spread(lit(frames) if kind.startswith("Motion") else frames, 3))]
    return card(*parts)


def lit(frames: list[Image.Image]) -> list[Image.Image]:
    """The frames that heat can lie on: the first latent frames are left out of it, the last have no
    successor."""
    return frames[len(frames) * 3 // 10 : len(frames) * 3 // 4]


def eight_clips(outputs: Outputs) -> Image.Image:
    """The middle of each clip, and the plot of their scores."""
    frames = outputs.frames("SaveAnimatedWEBP")
    length = len(frames) // 8
    middle = [frames[clip * length + length // 2] for clip in range(8)]
    plot = outputs.frames("LatentPhysicsLawScore")[0]
    return card("8 clips, each with its score", *grid(middle, 4), fitted(plot, SIDE))


def clip_and_plot(outputs: Outputs, text: str, kind: str) -> Image.Image:
    """Moments of the saved clip, and what a node of this type plotted."""
    moments = spread(outputs.frames("SaveAnimatedWEBP"), 5)[1:4]
    return card(text, row(moments), fitted(outputs.frames(f"LatentPhysics{kind}")[0], SIDE))


TOY: dict[str, Callable[[Outputs], Image.Image]] = {
    "toy_world_lamo": lambda outputs: side_by_side(outputs, "without LaMo", "with LaMo, same seed"),
    "toy_side_by_side": lambda outputs: four_ways(
        outputs, "one seed, four ways", "plain", "LaMo", "TSR", "time scaled", rows=2
    ),
    "toy_world_pila": lambda outputs: four_ways(
        outputs, "one seed, four ways", "plain", "LaMo", "PILA", "both"
    ),
    "motion_heatmaps": lambda outputs: overlays(
        outputs, ("MotionDriftHeatmap", "what moves"), ("MotionFieldHeatmap", "what should move")
    ),
    "pila_views": lambda outputs: overlays(
        outputs, ("ExpertMaps", "where an expert acts"), ("AttributeBankView", "the velocity it reads")
    ),
    "toy_world_score": eight_clips,
    "toy_world_best_of_n": lambda outputs: clip_and_plot(outputs, "the best of eight seeds", "PhysicsCritic"),
    "toy_train_predictor": lambda outputs: clip_and_plot(
        outputs, "train a predictor, use it", "TrainMotionPredictor"
    ),
    "toy_train_lora": lambda outputs: clip_and_plot(outputs, "train a LoRA, use it", "TrainPhysicsLora"),
    "correspondence_map": lambda outputs: overlays(
        outputs,
        ("CorrespondenceMap", "one point, as the model sees it"),
        ("CorrespondenceMap", "as a video encoder sees it"),
    ),
}
"""Workflow -> its picture, from what it put out."""


def heat_of_clip(server: ComfyServer, name: str) -> dict[str, Any]:
    """A graph that shows where an installed animation moves, through the toy world's VAE, on its frames."""
    shutil.copy(installed(name), server.base / "input" / name)
    scaled = {"image": ["2", 0], "upscale_method": "area", "crop": "center"}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 33}},
        "3": {"class_type": "ImageScale", "inputs": {**scaled, "width": 320, "height": 288}},
        "4": {"class_type": "LatentPhysicsLoadToyWorld", "inputs": {}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["3", 0], "vae": ["4", 2]}},
        "6": {
            "class_type": "LatentPhysicsMotionDriftHeatmap",
            "inputs": {
                "latent": ["5", 0],
                "images": ["3", 0],
                "lag": 2,
                "opacity": 0.85,
                "scale_mask": False,
            },
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


def cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture at exactly this size."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def row(tiles: list[Image.Image], height: int = 0) -> Image.Image:
    """Tiles beside one another, as wide as a thumbnail; square unless a height is given."""
    step = SIDE / len(tiles)
    height = height or round(step)
    canvas = Image.new("RGB", (SIDE, height), PAPER)
    for number, tile in enumerate(tiles):
        left, right = round(number * step), round((number + 1) * step)
        canvas.paste(cropped(tile, right - left - GAP, height - GAP), (left + GAP // 2, GAP // 2))
    return canvas


def grid(tiles: list[Image.Image], across: int) -> list[Image.Image]:
    """Rows of tiles; two by two fill what a thumbnail has below its lines of text."""
    rows = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    return [row(part, (SIDE - 2 * BAND) // 2 if across == 2 else 0) for part in rows]


def line(text: str) -> Image.Image:
    """A line of text, smaller where it is too long."""
    canvas = Image.new("RGB", (SIDE, BAND), PAPER)
    size = LETTERS
    while ImageFont.load_default(size=size).getlength(text) > SIDE - 24:
        size -= 1
    ImageDraw.Draw(canvas).text(
        (12, (BAND - size) // 2 - 2), text, fill=INK, font=ImageFont.load_default(size=size)
    )
    return canvas


def card(*parts: str | Image.Image) -> Image.Image:
    """Lines of text and pictures one below the other in a square; what is left over is shared out."""
    made = [line(part) if isinstance(part, str) else part for part in parts]
    left_over = SIDE - sum(part.height for part in made)
    made[-1] = made[-1].crop((0, 0, SIDE, made[-1].height + min(left_over, 0)))
    space = max(left_over, 0) // len(made)
    canvas, y = Image.new("RGB", (SIDE, SIDE), PAPER), space // 2
    for part in made:
        canvas.paste(part, (0, y))
        y += part.height + space
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=88, optimize=True)
    say(f"wrote {path.name} ({picture.width} x {picture.height}, {path.stat().st_size // 1024} KiB)")
