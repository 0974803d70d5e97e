"""LaMo on the large models beside Wan, in the schedules of ComfyUI's own templates: HunyuanVideo 1.5, MiniMax
H3, Causal Forcing, CogVideoX. LTX-2.3 has a file of its own."""

from __future__ import annotations

from . import files
from .format import Graph, Node, Out
from .pieces import (
    CLIP,
    GUIDED,
    PREDICTORS,
    REAL_PROMPT,
    SEED,
    VAE,
    WAN_NEGATIVE,
    WAN_PREDICTOR,
    cfg_guider,
    custom_sampler,
    custom_sampling,
    decode,
    guidance,
    how_to_train,
    loader,
    loaders,
    numbered,
    predictor,
    prompts,
    real_graph,
    save_video,
    schedule,
    shift,
    start_image,
    text_loader,
    trace,
    vae_loader,
)

POSITIVE, NEGATIVE = Out("positive", "CONDITIONING"), Out("negative", "CONDITIONING")
FIRST_IMAGE = Out("image", "IMAGE")
MODEL, SAMPLED, IMAGES = Out("model", "MODEL"), Out("sampler", "output"), Out("decode", "IMAGE")
TRACE = (
    "**Guidance Trace** shows the motion error of each step before and after the nudge. Set **share** in LaMo Guidance to 0 and run "
    "again for the same video without LaMo."
)
OWN_PICTURE = "\nChoose your own picture in *First frame*, and say in the prompt what moves.\n"
COG_PREDICTOR = PREDICTORS["cogvideox1.5"]
COG_CACHE = (
    "--backbone cogvideox --source THUDM/CogVideoX1.5-5B",
    "--width 1360 --height 768 --frames 77 --fps 16",
)
"""Options of `training cache` for what the CogVideoX graph generates."""


def looked_at(name: str, fps: float) -> tuple[str, list[Node], int]:
    """The column of the video and of what guidance did."""
    return "Look", [*save_video(IMAGES, f"video/{name}", fps), trace(GUIDED, SAMPLED)], 420


def hunyuan(image: bool) -> Graph:
    name = f"hunyuanvideo1.5_{'i2v' if image else 't2v'}_lamo"
    size = {"width": 1280, "height": 720, "length": 121}
    conditioned = {
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "vae": VAE,
        "start_image": FIRST_IMAGE,
        "clip_vision_output": Out("seen", "CLIP_VISION_OUTPUT"),
    }
    seeing = {"clip_vision": Out("vision", "CLIP_VISION"), "image": FIRST_IMAGE}
    if image:
        video = Node(key="size", type="HunyuanVideo15ImageToVideo", values={**conditioned, **size})
        wires, latent = (Out("size", "positive"), Out("size", "negative")), Out("size", "latent")
        picture = [start_image(), Node(key="seen", type="CLIPVisionEncode", values=seeing)]
    else:
        video = Node(key="size", type="EmptyHunyuanVideo15Latent", values=size)
        wires, latent, picture = (POSITIVE, NEGATIVE), Out("size", "LATENT"), []
    texts = {"clip_name1": files.QWEN.name, "clip_name2": files.BYT5.name, "type": "hunyuan_video_15"}
    vision = {"clip_name": files.SIGCLIP.name}
    load = [
        loader("model", files.HUNYUAN_I2V if image else files.HUNYUAN_T2V),
        Node(key="clip", type="DualCLIPLoader", values=texts, files=(files.QWEN, files.BYT5)),
        vae_loader(files.HUNYUAN_VAE),
        *(
            [Node(key="vision", type="CLIPVisionLoader", values=vision, files=(files.SIGCLIP,))]
            if image
            else []
        ),
        predictor(PREDICTORS["hunyuan_video1.5"]),
    ]
    sampling = custom_sampling(cfg_guider(GUIDED, 6.0, *wires), "euler", schedule(MODEL, 20))
    return real_graph(
        name,
        f"HunyuanVideo 1.5 720p, {'image' if image else 'text'} to video, with LaMo",
        what="ComfyUI's own graph (20 steps of euler, CFG 6, shift 7) with **LaMo Guidance** as the last node "
        "before the sampler.",
        see=TRACE,
        space="hunyuan_video1.5",
        columns=numbered(
            ("Load", load, 420),
            ("Ask", [*prompts(REAL_PROMPT, ""), *picture, video], 420),
            ("Guide", [shift("shift", "model", 7.0), guidance(Out("shift", "MODEL"), full_trace=True)], 320),
            ("Sample", [*sampling, custom_sampler(latent), decode(SAMPLED)], 320),
            looked_at(name, 24.0),
        ),
        more=OWN_PICTURE if image else "",
    )


def hunyuan_text() -> Graph:
    return hunyuan(image=False)


def hunyuan_image() -> Graph:
    return hunyuan(image=True)


def h3(image: bool) -> Graph:
    """MiniMax H3 makes a video and its sound in one latent."""
    name = f"minimax_h3_{'i2v' if image else 't2v'}_lamo"
    asked = {"clip": CLIP, "vae": VAE, "prompt": REAL_PROMPT, "width": 832, "height": 480, "length": 124}
    picture = [start_image()] if image else []
    video = Node(
        key="ask",
        type="MiniMaxH3ImageToVideo",
        title="Prompt and video size",
        values={**asked, **({"first_frame": FIRST_IMAGE} if image else {})},
        height=360,
    )
    load = [
        loader("model", files.H3),
        text_loader(files.H3_TEXT, "minimax"),
        vae_loader(files.H3_VAE, title="Load VAE (video)"),
        vae_loader(files.H3_SOUND, "sound_vae", "Load VAE (sound)"),
        predictor(PREDICTORS["minimax_h3"]),
    ]
    wires = {"model": GUIDED, "conditioning": Out("ask", "positive")}
    guider = Node(key="guider", type="BasicGuider", values=wires)
    sampling = custom_sampling(guider, "res_multistep", schedule(MODEL, 20))
    sound = Node(
        key="sound", type="VAEDecodeAudio", values={"samples": SAMPLED, "vae": Out("sound_vae", "VAE")}
    )
    return real_graph(
        name,
        f"MiniMax H3, {'image' if image else 'text'} to video with sound, with LaMo",
        what="ComfyUI's own graph (20 steps of res_multistep, no CFG) with **LaMo Guidance** as the last node before the sampler. The "
        "sound is left alone.",
        see=TRACE,
        space=H3_SPACE,
        columns=numbered(
            ("Load", load, 440),
            ("Ask", [*picture, video], 420),
            ("Guide", [guidance(MODEL, full_trace=True)], 320),
            ("Sample", [*sampling, custom_sampler(Out("ask", "LATENT")), decode(SAMPLED), sound], 320),
            (
                "Look",
                [
                    *save_video(IMAGES, f"video/{name}", 24.0, Out("sound", "AUDIO")),
                    trace(GUIDED, SAMPLED),
                ],
                420,
            ),
        ),
        more=OWN_PICTURE if image else "",
    )


H3_SPACE = "minimax_h3"


def h3_text() -> Graph:
    return h3(image=False)


def h3_image() -> Graph:
    return h3(image=True)


def causal() -> Graph:
    """A model that makes a video frame by frame."""
    size = {"width": 832, "height": 480, "length": 81}
    first = {"model": MODEL, "vae": VAE, "start_image": FIRST_IMAGE, **size}
    ready = Out("first", "MODEL")
    guider = cfg_guider(GUIDED, 1.0, POSITIVE, NEGATIVE)
    frames = Node(key="choice", type="SamplerARVideo", values={"num_frame_per_block": 1})
    noise, _, _, sigmas = custom_sampling(guider, "", schedule(ready, 4))
    sampling = [noise, guider, frames, sigmas, custom_sampler(Out("first", "LATENT")), decode(SAMPLED)]
    return real_graph(
        "causal_forcing_i2v_lamo",
        "Causal Forcing, image to video frame by frame, with LaMo",
        what="ComfyUI's own graph (Wan 2.1 1.3B distilled to four steps a frame, CFG 1) with **LaMo Guidance** as the last node before "
        "the sampler.",
        see=TRACE,
        space="wan2.1",
        columns=numbered(
            (
                "Load",
                [
                    loader("model", files.CAUSAL),
                    *loaders(files.UMT5, "wan", files.WAN_VAE),
                    predictor(WAN_PREDICTOR),
                ],
                420,
            ),
            (
                "Ask",
                [
                    *prompts(REAL_PROMPT, WAN_NEGATIVE),
                    start_image(),
                    Node(key="first", type="ARVideoI2V", values=first),
                ],
                420,
            ),
            ("Guide", [guidance(ready, full_trace=True)], 320),
            ("Sample", sampling, 320),
            looked_at("causal_forcing_i2v_lamo", 16.0),
        ),
        more="\n**Sampler AR Video** makes one latent frame at a time. Each is guided behind the frames made before it, so the first two "
        "are not guided. The model has Wan 2.1's latents and its predictor.\n" + OWN_PICTURE,
    )


def cogvideox() -> Graph:
    wires = {
        "model": GUIDED,
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "sampler": Out("ddim", "SAMPLER"),
        "sigmas": Out("sigmas", "SIGMAS"),
        "latent_image": Out("size", "LATENT"),
    }
    empty = {"width": 1360, "height": 768, "length": 77}
    return real_graph(
        "cogvideox_lamo",
        "CogVideoX 1.5 5B, text to video, with LaMo",
        what="CogVideoX is sampled with **VOIDSampler** and **SamplerCustom**: KSampler scales the noise in a way that this model was "
        f"not trained for. For the transformer there is no file made for ComfyUI: `models/diffusion_models/{files.COG}` has to "
        "hold CogVideoX 1.5 5B under ComfyUI's own tensor names (`blocks.0.q.weight`); a file with diffusers' names "
        "(`transformer_blocks.0.attn1.to_q.weight`) does not load.",
        see=TRACE,
        space="cogvideox1.5",
        columns=numbered(
            (
                "Load",
                [
                    Node(key="model", type="UNETLoader", values={"unet_name": files.COG}),
                    *loaders(files.T5, "cogvideox", files.COG_VAE),
                    predictor(COG_PREDICTOR),
                ],
                380,
            ),
            (
                "Ask",
                [
                    *prompts(REAL_PROMPT, ""),
                    Node(key="size", type="EmptyHunyuanLatentVideo", title="Video size", values=empty),
                ],
                420,
            ),
            ("Guide", [guidance(MODEL, full_trace=True)], 320),
            (
                "Sample",
                [
                    Node(key="ddim", type="VOIDSampler"),
                    schedule(MODEL, 50),
                    Node(
                        key="sampler", type="SamplerCustom", values={**wires, "noise_seed": SEED, "cfg": 6.0}
                    ),
                    decode(SAMPLED),
                ],
                320,
            ),
            looked_at("cogvideox_lamo", 16.0),
        ),
        more="\nThis model works on pairs of latent frames: 77 frames are 20 latent frames; lengths that give an odd number (81, 49) "
        "spoil the last ones. For the paper's own rule set *mode* to paper: strength 25 and, with *window* at steps, active 0.8 are "
        "its values.\n" + how_to_train(COG_PREDICTOR, *COG_CACHE),
    )


GRAPHS = (hunyuan_text, hunyuan_image, h3_text, h3_image, causal, cogvideox)
