"""Constants and nodes that several graphs share."""

from __future__ import annotations

from .format import Column, Graph, ModelFile, Node, Out

TOY_PREDICTOR = "toy/toy_predictor_order1.safetensors"
TOY_FPS = 16.0
TOY_PROMPT = "a large red ball thrown to the right, bouncing on the floor"
SEED = 7

PREDICTORS = {
    "wan2.1": "wan2.1_motion_predictor.safetensors",
    "wan2.2": "wan2.2_5B_motion_predictor.safetensors",
    "ltxav": "ltx2.3_motion_predictor.safetensors",
    "minimax_h3": "minimax_h3_motion_predictor.safetensors",
    "hunyuan_video1.5": "hunyuanvideo1.5_motion_predictor.safetensors",
    "cogvideox1.5": "cogvideox1.5_motion_predictor.safetensors",
}
"""Latent space -> the file that its graphs load."""
WAN_PREDICTOR = PREDICTORS["wan2.1"]
OWN_CLIPS = "ComfyUI's own clips"
"""The choice of Train Motion Predictor that needs no videos of the user's."""
EXAMPLE_IMAGE = "example.png"
"""The picture that lies in every ComfyUI's input folder."""
REAL_PROMPT = (
    "A glass marble rolls down a wooden ramp, drops onto a table, bounces twice and comes to rest. "
    "Close-up, steady camera, soft daylight."
)
# Wan's own negative prompt, with which it was released.
WAN_NEGATIVE = (
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21\u7cca\u4e0d"
    "\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b\u4f5c\uff0c\u753b\u9762"
    "\uff0c\u9759\u6b62\uff0c\u6574\u4f53\u53d1\u7070\uff0c\u6700\u5dee\u8d28\u91cf\uff0c\u4f4e\u8d28"
    "\u91cf\uff0cJPEG\u538b\u7f29\u6b8b\u7559\uff0c\u4e11\u964b\u7684\uff0c\u6b8b\u7f3a\u7684\uff0c\u591a"
    "\u4f59\u7684\u624b\u6307\uff0c\u753b\u5f97\u4e0d\u597d\u7684\u624b\u90e8\uff0c\u753b\u5f97\u4e0d"
    "\u597d\u7684\u8138\u90e8\uff0c\u7578\u5f62\u7684\uff0c\u6bc1\u5bb9\u7684\uff0c\u5f62\u6001\u7578"
    "\u5f62\u7684\u80a2\u4f53\uff0c\u624b\u6307\u878d\u5408\uff0c\u9759\u6b62\u4e0d\u52a8\u7684\u753b"
    "\u9762\uff0c\u6742\u4e71\u7684\u80cc\u666f\uff0c\u4e09\u6761\u817f\uff0c\u80cc\u666f\u4eba\u5f88"
    "\u591a\uff0c\u5012\u7740\u8d70"
)

CLIP, VAE = Out("clip", "CLIP"), Out("vae", "VAE")


def predictor(name: str) -> Node:
    return Node(key="predictor", type="LatentPhysicsLoadMotionPredictor", values={"name": name})


def guidance(model: Out, *, key: str = "guidance", title: str = "", **values: object) -> Node:
    """LaMo Guidance at its defaults, which fit every schedule, unless `values` say otherwise."""
    wires = {"model": model, "predictor": Out("predictor", "predictor")}
    return Node(key=key, type="LatentPhysicsLaMoGuidance", title=title, values={**wires, **values})


def prompts(positive: object, negative: str, clip: Out = CLIP) -> list[Node]:
    """The two CLIP Text Encode; `positive` is a text or a wire."""
    return [
        Node(
            key="positive",
            type="CLIPTextEncode",
            title="Positive prompt",
            values={"clip": clip, "text": positive},
        ),
        Node(
            key="negative",
            type="CLIPTextEncode",
            title="Negative prompt",
            values={"clip": clip, "text": negative},
        ),
    ]


def size(width: int, height: int, length: int, batch_size: int = 1) -> Node:
    values = {"width": width, "height": height, "length": length, "batch_size": batch_size}
    return Node(key="size", type="EmptyHunyuanLatentVideo", title="Video size", values=values)


def sampler(model: Out, *, key: str = "sampler", title: str = "", **values: object) -> Node:
    """KSampler with the toy world's settings, unless `values` say otherwise."""
    wires = {
        "model": model,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent_image": Out("size", "LATENT"),
    }
    settings = {"seed": SEED, "steps": 20, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    return Node(key=key, type="KSampler", title=title, values={**wires, **settings, **values})


def decode(latent: Out, *, key: str = "decode", vae: Out = VAE, title: str = "") -> Node:
    return Node(key=key, type="VAEDecode", title=title, values={"samples": latent, "vae": vae})


def save_video(images: Out, name: str, fps: float, sound: Out | None = None) -> list[Node]:
    values = {"images": images, "fps": fps, **({"audio": sound} if sound else {})}
    return [
        Node(key="video", type="CreateVideo", values=values),
        Node(
            key="save",
            type="SaveVideo",
            values={"video": Out("video", "VIDEO"), "filename_prefix": name},
            height=420,
        ),
    ]


def save_toy(images: Out, name: str, height: int = 420) -> list[Node]:
    """Toy clips are 64 pixels wide: enlarged without smoothing, they can be looked at."""
    larger = {"image": images, "upscale_method": "nearest-exact", "scale_by": 4.0}
    saved = {
        "images": Out("larger", "IMAGE"),
        "filename_prefix": f"latent_physics/{name}",
        "fps": TOY_FPS,
        "lossless": False,
    }
    return [
        Node(key="larger", type="ImageScaleBy", title="Enlarge", values=larger),
        Node(key="save", type="SaveAnimatedWEBP", values={**saved, "quality": 90}, height=height),
    ]


def law_score(images: Out, *, key: str = "score", title: str = "") -> Node:
    values = {"images": images, "prompt": Out("prompt", "STRING")}
    return Node(key=key, type="LatentPhysicsLawScore", title=title, values=values, height=420)


def trace(model: Out, latent: Out, *, key: str = "trace", title: str = "") -> Node:
    return Node(
        key=key,
        type="LatentPhysicsGuidanceTrace",
        title=title,
        values={"model": model, "latent": latent},
        height=420,
    )


WORLD = Node(key="world", type="LatentPhysicsLoadToyWorld")
TOY_MODEL, TOY_CLIP, TOY_VAE = Out("world", "MODEL"), Out("world", "CLIP"), Out("world", "VAE")
PROMPT = Node(
    key="prompt", type="PrimitiveStringMultiline", title="Prompt", values={"value": TOY_PROMPT}, height=130
)
GUIDED = Out("guidance", "MODEL")
TOY_PROMPTS = """
Prompts the toy world understands (colours: red, green, blue, yellow, purple; sizes: small, large):

- `a small blue ball falls to the floor and bounces to the left`
- `a large green block oscillating on a spring, released below`
- `a small red drop of dye swirling clockwise in a basin of water`
- `a large purple puff of smoke expanding and drifting up`
- `a small yellow block of ice melting on a grille on the left`
- `a large red puck and a small blue puck colliding on a table`
- `a small red spot of heat spreading on a metal plate from the middle`
- `a thin yellow ring of light spreading from a lamp on the left`
"""


def how_to_train(name: str, *options: str) -> str:
    """The commands that train a motion predictor of use."""
    lines = " \\\n  ".join(["python training cache --videos MY_CLIPS --out runs/cache", *options])
    return f"""
**A predictor to keep** is trained once per latent space, on videos of your own, and shared by all models of that space. In this
pack's folder below ComfyUI/custom_nodes, after `pip install -e .[train]`:

```
{lines}
python training predictor --cache runs/cache --out runs/predictor \\
  --export ../../models/latent_physics/{name}
```

Then press R, so that Load Motion Predictor lists the file. The pack's docs/training.md says how to tell a good predictor.
"""


def quick_predictor(space: str) -> str:
    """The sentence that leads from a graph to a first motion predictor."""
    return f"""
**No motion predictor yet?** The template **first_predictor** makes `{PREDICTORS[space]}` from clips that every ComfyUI has on its
disk, in minutes on a GPU: **Train Motion Predictor** with recipe `quick`, latent_space `{space}` and this graph's VAE.
"""


def real_graph(
    name: str, title: str, *, what: str, see: str, space: str, columns: list[Column], more: str = ""
) -> Graph:
    """A graph of a large model, with a note that lists its files.

    what: what the graph is; see: what to look at; space: the latent space of its motion predictor; more: what
    else there is to say.
    """
    files = dict.fromkeys(file for column in columns for node in column.nodes for file in node.files)
    listed = "\n".join(f"- `models/{file.directory}/{file.name}`" for file in files)
    note = f"""# {title}

{what}

**Files**, those of ComfyUI's own template; the interface says which are missing and where they come from:

{listed}
- `models/latent_physics/`: the motion predictor of **Load Motion Predictor**
{quick_predictor(space)}
**Press Run, then look:** {see}
{more}"""
    return Graph(
        name=name, note=note, note_width=620, note_height=NOTE_LINE * (12 + len(files)) + 380, columns=columns
    )


NOTE_LINE = 22
"""Height of a line of a note, in pixels."""


def loader(key: str, file: ModelFile, title: str = "") -> Node:
    """Loads a diffusion model."""
    return Node(key=key, type="UNETLoader", title=title, values={"unet_name": file.name}, files=(file,))


def vae_loader(file: ModelFile, key: str = "vae", title: str = "") -> Node:
    return Node(key=key, type="VAELoader", title=title, values={"vae_name": file.name}, files=(file,))


def lora(key: str, model: str, file: ModelFile, title: str = "", strength: float = 1.0) -> Node:
    values = {"model": Out(model, "MODEL"), "lora_name": file.name, "strength_model": strength}
    return Node(key=key, type="LoraLoaderModelOnly", title=title, values=values, files=(file,))


def text_loader(file: ModelFile, kind: str) -> Node:
    return Node(key="clip", type="CLIPLoader", values={"clip_name": file.name, "type": kind}, files=(file,))


def loaders(text: ModelFile, kind: str, vae: ModelFile) -> list[Node]:
    return [text_loader(text, kind), vae_loader(vae)]


def start_image(title: str = "First frame") -> Node:
    return Node(key="image", type="LoadImage", title=title, values={"image": EXAMPLE_IMAGE}, height=320)


def shift(key: str, model: str, value: float, title: str = "Shift") -> Node:
    return Node(
        key=key, type="ModelSamplingSD3", title=title, values={"model": Out(model, "MODEL"), "shift": value}
    )


SAMPLING = {
    "noise": Out("noise", "NOISE"),
    "guider": Out("guider", "GUIDER"),
    "sampler": Out("choice", "SAMPLER"),
    "sigmas": Out("sigmas", "SIGMAS"),
}
"""Inputs of SamplerCustomAdvanced beside the latent, from the nodes of `custom_sampling`."""


def custom_sampling(guider: Node, sampler_name: str, sigmas: Node) -> list[Node]:
    """The nodes before SamplerCustomAdvanced; `guider` and `sigmas` have these words as their keys."""
    return [
        Node(key="noise", type="RandomNoise", values={"noise_seed": SEED}),
        guider,
        Node(key="choice", type="KSamplerSelect", values={"sampler_name": sampler_name}),
        sigmas,
    ]


def custom_sampler(latent: Out, key: str = "sampler", title: str = "") -> Node:
    values = {**SAMPLING, "latent_image": latent}
    return Node(key=key, type="SamplerCustomAdvanced", title=title, values=values)


def cfg_guider(model: Out, cfg: float, positive: Out, negative: Out, key: str = "guider") -> Node:
    values = {"model": model, "positive": positive, "negative": negative, "cfg": cfg}
    return Node(key=key, type="CFGGuider", values=values)


def schedule(model: Out, steps: int) -> Node:
    values = {"model": model, "scheduler": "simple", "steps": steps}
    return Node(key="sigmas", type="BasicScheduler", values=values)


def numbered(*columns: tuple[str, list[Node], int]) -> list[Column]:
    """Columns of (title, nodes, width), with their numbers."""
    return [
        Column(title=f"{number}  {title}", nodes=nodes, width=width)
        for number, (title, nodes, width) in enumerate(columns, 1)
    ]
