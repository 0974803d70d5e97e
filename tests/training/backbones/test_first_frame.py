"""Image-to-video: the first frame reaches our models as ComfyUI's nodes and models bring it there."""

from __future__ import annotations

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.base import Noised
from latent_physics.training.backbones.first_frame import FirstFrame, vision_from_file
from latent_physics.training.backbones.header import wan_header
from latent_physics.training.backbones.keys import WAN22_VAE, WAN_DIT, WAN_VAE, to_native
from latent_physics.training.console import TrainingError
from safetensors.torch import load_file, save_file

STYLES = ("i2v", "i2v-clip", "5b")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Native files of every style, and of both VAEs."""
    folder = tmp_path_factory.mktemp("wan")
    paths = {name: folder / f"{name}.safetensors" for name in (*STYLES, "t2v", "vae", "vae22")}
    for style in (*STYLES, "t2v"):
        save_file(to_native(tiny.wan_dit(style=style).state_dict(), WAN_DIT), paths[style])
    save_file(to_native(tiny.wan_vae().state_dict(), WAN_VAE), paths["vae"])
    save_file(to_native(tiny.wan22_vae().state_dict(), WAN22_VAE), paths["vae22"])
    return paths


@pytest.mark.comfy
@pytest.mark.parametrize("style", ["i2v", "i2v-clip"])
@torch.inference_mode()
def test_36_channels_see_what_wan_image_to_video_gives(comfy, files, style):
    """ComfyUI's node and its own VAE make the conditioning, its model puts it beside the noise."""
    from comfy_extras.nodes_wan import WanImageToVideo

    ours = load_backbone("wan", {"dit": files[style], "vae": files["vae"]}, parts=("dit", "vae"))
    assert ours.first_frame == "needed"
    video = torch.rand(1, 3, 9, 16, 32)
    first = ours.encode_first_frame(video)
    latent, tokens = torch.randn(1, 16, 3, 2, 4), torch.randn(1, 512, 4096)
    clip = {}
    if style == "i2v-clip":
        vision = torch.randn(1, 257, 1280)
        first, clip = FirstFrame(latent=first.latent, vision=vision), {"clip_fea": vision}
    out = ours.predict(latent, torch.tensor([0.5]), tokens, first=first)

    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files["vae"]), safe_load=True))
    start = video[0, :, :1].permute(1, 2, 3, 0)
    positive = [[tokens, {}]]
    positive = WanImageToVideo.execute(positive, positive, vae, 32, 16, 9, 1, start_image=start).result[0]
    model = comfy.sd.load_diffusion_model(str(files[style])).model
    beside = model.concat_cond(noise=latent, device=torch.device("cpu"), **positive[0][1])
    assert beside.shape[1] == 20
    seen = torch.cat([latent, beside], dim=1)
    theirs = model.diffusion_model(seen, torch.tensor([500.0]), tokens, **clip)
    torch.testing.assert_close(out, theirs, rtol=1e-4, atol=1e-4)
    other = ours.encode_first_frame(1 - video)
    changed = ours.predict(
        latent, torch.tensor([0.5]), tokens, first=FirstFrame(latent=other.latent, vision=first.vision)
    )
    assert (changed - out).abs().max() > 1e-3


@pytest.mark.comfy
@torch.inference_mode()
def test_5b_sees_a_clean_first_frame_at_its_own_time(comfy, files):
    """As with Wan22ImageToVideoLatent's mask: 0 in the first frame, whose tokens are told time 0."""
    ours = load_backbone("wan", {"dit": files["5b"], "vae": files["vae22"]}, parts=("dit", "vae"))
    assert (ours.first_frame, ours.latent_space, ours.spatial_stride) == ("possible", "wan2.2", 16)
    clean = ours.encode_video(torch.rand(2, 3, 9, 64, 96))
    assert clean.shape == (2, 48, 3, 4, 6)
    t, tokens = torch.tensor([0.7, 0.4]), torch.randn(2, 512, 4096)
    first = FirstFrame(given=torch.tensor([True, False]))
    noised = ours.noise(clean, t, torch.Generator().manual_seed(0)).showing(clean, first)
    assert torch.equal(noised.noisy[0, :, 0], clean[0, :, 0])
    assert not torch.isclose(noised.noisy[1, :, 0], clean[1, :, 0]).all()
    out = ours.predict(noised.noisy, t, tokens, first=first)

    model = comfy.sd.load_diffusion_model(str(files["5b"])).model
    for row, given in enumerate((True, False)):
        mask = torch.ones(1, 1, 3, 4, 6)
        mask[:, :, 0] = 0.0
        x, time = noised.noisy[row : row + 1], t[row : row + 1] * 1000
        times = model.process_timestep(time, x, denoise_mask=mask if given else None)
        theirs = model.diffusion_model(x, times, tokens[row : row + 1])
        torch.testing.assert_close(out[row : row + 1], theirs, rtol=1e-4, atol=1e-4)


def test_a_given_frame_is_no_part_of_the_error_and_comes_back_in_the_estimate():
    noisy, target, out = (torch.randn(2, 48, 3, 2, 2, dtype=torch.float64) for _ in range(3))
    given = torch.tensor([True, False])
    noised = Noised(noisy=noisy, target=target, weight=torch.ones(2), given=given)
    square = (out - target).float().square()
    expected = torch.stack([square[0, :, 1:].mean(), square[1].mean()])
    torch.testing.assert_close(noised.error(out), expected)
    x0 = noised.with_given(out)
    assert torch.equal(x0[0, :, 0], noisy[0, :, 0])
    assert torch.equal(x0[0, :, 1:], out[0, :, 1:])
    assert torch.equal(x0[1], out[1])


@pytest.mark.comfy
@torch.inference_mode()
def test_clip_vision_sees_what_comfyui_sees(comfy, tmp_path):
    """The template's CLIPVisionEncode without cropping, its penultimate tokens."""
    from comfy.clip_vision import ClipVisionModel

    path = tiny.clip_vision(tmp_path)
    config = {
        "hidden_size": 160, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "hidden_act": "gelu", "model_type": "clip_vision_model",
        "num_channels": 3, "projection_dim": 32,
    }  # fmt: skip
    theirs = ClipVisionModel(config)
    theirs.model.float()  # its weights rest in half precision on a CPU
    theirs.load_sd(load_file(path))
    image = torch.rand(1, 3, 48, 80)
    seen = theirs.encode_image(image.movedim(1, -1), crop=False)["penultimate_hidden_states"]
    ours = vision_from_file(path, load_file(path), torch.float32)(image)
    assert ours.shape == (1, 5, 160)
    torch.testing.assert_close(ours, seen.float(), rtol=1e-4, atol=1e-4)


def test_a_file_that_is_no_clip_vision_is_told(files, tmp_path):
    path = tiny.clip_vision(tmp_path)
    backbone = load_backbone("wan", {"vae": files["vae"], "vision": path}, parts=("vae", "vision"))
    assert backbone.encode_first_frame(torch.rand(1, 3, 5, 16, 16)).vision.shape == (1, 5, 160)
    for wrong in (files["vae"], files["t2v"]):
        with pytest.raises(TrainingError, match="is not CLIP's vision encoder"):
            load_backbone("wan", {"vision": wrong}, parts=("vision",))
    state = load_file(path)
    del state["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(state, path)
    with pytest.raises(TrainingError, match=r"ViT-H \('encoder\.layers\.1\.mlp\.fc1\.bias'\)"):
        load_backbone("wan", {"vision": path}, parts=("vision",))


def test_what_a_file_takes_is_read_off_its_header(files, tmp_path):
    found = {style: wan_header(None, files[style]) for style in (*STYLES, "t2v")}
    assert {style: header.first_frame for style, header in found.items()} == {
        "i2v": "needed", "i2v-clip": "needed", "5b": "possible", "t2v": "",
    }  # fmt: skip
    assert [style for style, header in found.items() if header.vision] == ["i2v-clip"]
    assert wan_header(None, files["vae"]) is None
    assert wan_header("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", None) is None
    tiny.wan_dit(style="i2v-clip").save_pretrained(tmp_path / "transformer")
    assert wan_header(tmp_path, None) == found["i2v-clip"]
    save_file({"patch_embedding.weight": torch.zeros(8, 48, 1, 2, 2), "head.head.weight": torch.zeros(64, 8)},
              tmp_path / "control.safetensors")  # fmt: skip
    with pytest.raises(TrainingError, match="is given a control or reference video"):
        wan_header(None, tmp_path / "control.safetensors")
    (tmp_path / "transformer" / "config.json").write_text("[]")
    with pytest.raises(TrainingError, match="is not a transformer's configuration"):
        wan_header(tmp_path, None)


def test_models_without_their_first_frame_say_what_is_missing(files):
    latent, t, tokens = torch.randn(1, 16, 3, 2, 4), torch.tensor([0.5]), torch.randn(1, 8, 4096)
    backbone = load_backbone("wan", {"dit": files["i2v-clip"]}, parts=("dit",))
    with pytest.raises(TrainingError, match="makes videos of a first frame, which these clips lack"):
        backbone.predict(latent, t, tokens)
    with pytest.raises(TrainingError, match="CLIP's view of the first frame"):
        backbone.predict(latent, t, tokens, first=FirstFrame(latent=latent))
    with pytest.raises(TrainingError, match="have 48 channels, the VAE's 16"):
        load_backbone("wan", {"dit": files["5b"], "vae": files["vae"]}, parts=("dit", "vae"))
