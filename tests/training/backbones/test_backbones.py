"""Loading, encoding, embedding, noising and tapping, on tiny models of both families."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.cogvideox import alphas_cumprod
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones import load
from latent_physics.training.backbones.cogvideox import CogVideoXBackbone
from latent_physics.training.backbones.first_frame import FirstFrame
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.backbones.lora import TuneConfig, attach
from latent_physics.training.backbones.scaled import unscaled
from latent_physics.training.backbones.wan import WanBackbone
from latent_physics.training.console import TrainingError
from latent_physics.training.loop.config import LoopConfig
from latent_physics.training.loop.optim import trainable
from latent_physics.training.loop.processes import make_accelerator
from safetensors.torch import save_file


@pytest.fixture(scope="module", params=["wan", "cogvideox"])
def backbone(request, tmp_path_factory):
    family = request.param
    return load_backbone(family, tiny.diffusers_folder(tmp_path_factory.mktemp(family), family))


def test_encode_embed_noise_predict_and_back(backbone):
    video = torch.rand(1, 3, 9, 16, 32)
    latent = backbone.encode_video(video)
    assert latent.shape == (1, 16, 3, 2, 4)
    torch.testing.assert_close(latent, backbone.encode_video(video))
    assert backbone.decode_latent(latent).shape == video.shape
    tokens, mask = backbone.embed_prompts(["a red ball falls", ""])
    assert tokens.shape == (2, backbone.text_length, backbone.cond_dim)
    assert mask.dtype == torch.bool
    t = backbone.sample_t(1, torch.Generator().manual_seed(0))
    noised = backbone.noise(latent, t, torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = backbone.predict(noised.noisy, t, tokens[:1], mask[:1])
    assert out.shape == latent.shape
    torch.testing.assert_close(backbone.x0(noised.noisy, noised.target, t), latent, rtol=1e-4, atol=1e-4)


def test_mask_is_what_the_conditioning_shows(backbone):
    """Wan's padding is zero and masked; CogVideoX attends to its padding, so nothing is masked."""
    tokens, mask = backbone.embed_prompts(["a red ball falls"])
    if backbone.family == "wan":
        assert mask.sum() == 5
        assert (tokens[~mask] == 0).all()
    else:
        assert mask.all()
        assert (tokens[0, 5:].abs().sum(-1) > 0).all()


def test_latent_scaling_is_comfyuis(backbone):
    """`normalise` undoes `denormalise`, and equals the published constants."""
    latent = torch.randn(2, 16, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(backbone.denormalise(backbone.normalise(latent)), latent)
    expected = (0 + 0.7571) / 2.8184 if backbone.family == "wan" else 0.0
    assert backbone.normalise(torch.zeros(1, 16, 1, 1, 1))[0, 0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.comfy
def test_latent_scaling_equals_process_latent_in(comfy):
    from comfy import latent_formats

    for backbone, theirs in [
        (WanBackbone(latent_space="wan2.1"), latent_formats.Wan21()),
        (WanBackbone(latent_space="wan2.2"), latent_formats.Wan22()),
        (CogVideoXBackbone(latent_space="cogvideox"), latent_formats.CogVideoX()),
        (CogVideoXBackbone(latent_space="cogvideox1.5"), latent_formats.CogVideoX1_5()),
    ]:
        latent = torch.randn(1, theirs.latent_channels, 2, 3, 3)
        torch.testing.assert_close(backbone.normalise(latent), theirs.process_in(latent))
        torch.testing.assert_close(backbone.denormalise(latent), theirs.process_out(latent))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cogvideox_schedule_is_the_published_one(shift):
    from diffusers import CogVideoXDPMScheduler

    theirs = CogVideoXDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        snr_shift_scale=shift,
        rescale_betas_zero_snr=True,
    )
    torch.testing.assert_close(alphas_cumprod(shift), theirs.alphas_cumprod.double(), rtol=1e-5, atol=1e-9)
    backbone = CogVideoXBackbone(latent_space="cogvideox", snr_shift=shift)
    latent, eps, t = torch.randn(3, 16, 2, 2, 2), torch.randn(3, 16, 2, 2, 2), torch.tensor([0, 500, 999])
    noised = backbone.noise(latent, t, eps=eps)
    torch.testing.assert_close(noised.noisy, theirs.add_noise(latent, eps, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noised.target, theirs.get_velocity(latent, eps, t), rtol=1e-4, atol=1e-4)
    # The loss the models were trained with: the error of x0 over 1 - alpha_bar.
    answer = torch.randn_like(latent)
    ours = noised.weight * (answer - noised.target).square().mean(dim=(1, 2, 3, 4))
    published = (theirs.get_velocity(answer, noised.noisy, t) - latent).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(
        ours, (published / (1 - theirs.alphas_cumprod[t])).float(), rtol=1e-2, atol=1e-3
    )


@pytest.mark.comfy
@pytest.mark.parametrize(("heads", "right"), [(48, True), (30, False)])
def test_comfyui_has_the_schedule_of_the_5b_models_alone(comfy, heads, right):
    """What the recipes' page says of CogVideoX-2B: ComfyUI samples it without the SNR shift that the model
    was trained with."""
    from comfy import model_base, supported_models

    config = supported_models.CogVideoX_T2V({"image_model": "cogvideox", "num_attention_heads": heads})
    sigmas = model_base.model_sampling(config, model_base.ModelType.V_PREDICTION_DDPM).sigmas[:-1].double()
    trained = alphas_cumprod(1.0 if heads == 48 else 3.0)[:-1]
    assert torch.allclose(1 / (1 + sigmas**2), trained, rtol=1e-3, atol=1e-5) == right


def test_tap_sees_the_block_and_its_gradient(backbone):
    latent = torch.randn(2, 16, 2, 4, 8)
    tokens = torch.randn(2, backbone.text_length, backbone.cond_dim)
    t = torch.tensor([0.3, 0.6]) if backbone.family == "wan" else torch.tensor([300, 600])
    backbone.dit.requires_grad_(True)
    with backbone.tap(1, 2) as taps:
        backbone.predict(latent, t, tokens)
    assert set(taps) == {1, 2}
    assert taps[2].grid == (2, 2, 4)
    assert taps[2].tokens.shape[:2] == (2, 16)
    plain = torch.autograd.grad(taps[2].tokens.square().sum(), next(backbone.blocks[0].parameters()))[0]
    backbone.dit.enable_gradient_checkpointing()
    with backbone.tap(2) as taps:
        backbone.predict(latent, t, tokens)
    checkpointed = torch.autograd.grad(taps[2].tokens.square().sum(), next(backbone.blocks[0].parameters()))[
        0
    ]
    backbone.dit.disable_gradient_checkpointing()
    backbone.dit.requires_grad_(False)
    torch.testing.assert_close(plain, checkpointed)
    with pytest.raises(TrainingError, match="blocks 1 to 2"), backbone.tap(0):
        pass


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_native_files_equal_the_diffusers_model(family, tmp_path):
    backbone = load_backbone(family, tiny.native_files(tmp_path, family), parts=("dit",))
    expected = (tiny.cog_dit() if family == "cogvideox" else tiny.wan_dit()).state_dict()
    for key, value in backbone.dit.state_dict().items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.comfy
@pytest.mark.parametrize("style", ["2b", "1.5"])  # the 5B's positions differ: see test_export_formats
@torch.inference_mode()
def test_cogvideox_predicts_what_comfyui_predicts(comfy, style, tmp_path):
    """Through ComfyUI's stock loader, with positions and all, at a width the 2B position table fits."""
    dit = tiny.cog_dit(style)
    from latent_physics.training.backbones.keys import COGVIDEOX_DIT, to_native

    state = to_native(dit.state_dict(), COGVIDEOX_DIT)
    if style == "2b":
        state["patch_embed.pos_embedding"] = dit.patch_embed.pos_embedding
    save_file(state, tmp_path / "dit.safetensors")
    theirs = comfy.sd.load_diffusion_model(str(tmp_path / "dit.safetensors")).model
    ours = load_backbone("cogvideox", {"dit": tmp_path / "dit.safetensors"}, parts=("dit",))
    latent = torch.randn(1, 16, 1, 8, 90) if style == "2b" else torch.randn(1, 16, 4, 8, 10)
    tokens = torch.randn(1, 226, 4096)
    out = ours.predict(latent, torch.tensor([500]), tokens)
    torch.testing.assert_close(
        out, theirs.diffusion_model(latent, torch.tensor([500.0]), tokens), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 10, 16, 16), "9 would"), ((1, 3, 9, 20, 16), "16x16 would"), ((3, 9, 16, 16), "B 3 T H W")],
)
def test_videos_that_do_not_fit_say_what_would(shape, message):
    with pytest.raises(TrainingError, match=message):
        WanBackbone(latent_space="wan2.1").encode_video(torch.rand(shape))


def test_pixels_out_of_range_and_missing_parts_are_told():
    backbone = WanBackbone(latent_space="wan2.1")
    with pytest.raises(TrainingError, match="-1 to 1"):
        backbone.encode_video(torch.tensor([-1.0, 1.0]).repeat(1, 3, 9, 16, 8))
    with pytest.raises(TrainingError, match="nan"):
        backbone.encode_video(torch.full((1, 3, 9, 16, 16), float("nan")))
    with pytest.raises(TrainingError, match="without its vae"):
        backbone.encode_video(torch.rand(1, 3, 9, 16, 16))


def test_bad_sources_are_one_sentence(tmp_path):
    wan = tiny.native_files(tmp_path / "wan")
    cases = [
        ("hunyuan", None, ("dit",), "wan, cogvideox, hunyuan15, ltx23, toy"),
        ("wan", None, ("unet",), "parts are vae, text, dit"),
        ("wan", str(wan["dit"]), ("dit",), "is one file"),
        ("wan", {"dit": tmp_path / "no.safetensors"}, ("dit",), "does not exist"),
        ("wan", {"dit": wan["dit"]}, ("dit", "vae"), "no file was given for 'vae'"),
        ("cogvideox", {"dit": wan["dit"]}, ("dit",), "not a weight of this model family"),
        ("wan", {"dit": wan["vae"]}, ("dit",), "not a weight of this model family"),
        ("wan", tmp_path / "nowhere", ("dit",), "could not be loaded"),
    ]
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    cases.append(("wan", {"dit": tmp_path / "broken.safetensors"}, ("dit",), "not a readable safetensors"))
    for family, source, parts, message in cases:
        with pytest.raises(TrainingError, match=message) as caught:
            load_backbone(family, source, parts)
        assert "\n" not in str(caught.value)


def test_models_that_are_given_another_video_are_refused_for_that():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=1, num_layers=1, ffn_dim=64, in_channels=48)
    with pytest.raises(TrainingError, match="takes 48 channels for 16 of latents: it is given a control"):
        WanBackbone(latent_space="wan2.1", dit=model, device="meta")


def test_native_umt5_file_with_its_tokenizer(tmp_path):
    """A single file as ComfyUI's text_encoders folder holds it: weights and sentencepiece model together."""
    import io

    import sentencepiece
    from transformers import UMT5Config, UMT5EncoderModel

    model = io.BytesIO()
    words = [
        "a red ball falls",
        "the blue spring swings",
        "smoke rises over the floor",
        "ice melts in the warm room",
    ] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=32,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    size = {
        "vocab_size": 32,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }
    encoder = tiny.randomised(UMT5EncoderModel(UMT5Config(**size)))
    state = {key: value for key, value in encoder.state_dict().items() if "embed_tokens" not in key}
    state["spiece_model"] = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    save_file(state, tmp_path / "umt5.safetensors")
    backbone = load_backbone("wan", {"text": tmp_path / "umt5.safetensors"}, parts=("text",))
    tokens, mask = backbone.embed_prompts(["a red  ball falls"])
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = torch.tensor([[*pieces.encode("a red ball falls"), 1]])
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state
    assert mask.sum() == ids.shape[1]
    torch.testing.assert_close(tokens[:, : ids.shape[1]], expected, rtol=1e-4, atol=1e-5)

    save_file(scaled_fp8(state), tmp_path / "scaled.safetensors")  # as ComfyUI's own templates name them
    scaled = load_backbone("wan", {"text": tmp_path / "scaled.safetensors"}, parts=("text",))
    rough, _ = scaled.embed_prompts(["a red ball falls"])
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(in_fp8(module.weight)[0].float() * in_fp8(module.weight)[1])
        expected = encoder(ids).last_hidden_state
    torch.testing.assert_close(rough[:, : ids.shape[1]], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rough, tokens, atol=1e-4)  # rounded, and read as such


def in_fp8(weight):
    """(weight in float8, its scale): the largest value at float8's largest."""
    scale = weight.detach().abs().max() / 448
    return (weight.detach() / scale).to(torch.float8_e4m3fn), scale


def scaled_fp8(state):
    """The state with its linear layers in float8, scales beside them."""
    out = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, value in state.items():
        if (
            value.ndim == 2
            and any(name in key for name in ("SelfAttention.", "DenseReluDense."))
            and "bias" not in key
        ):
            out[key], out[key.replace(".weight", ".scale_weight")] = in_fp8(value)
            out[key.replace(".weight", ".scale_input")] = torch.ones(())
        else:
            out[key] = value
    return out


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scales_stand_for_a_tensor_or_for_its_rows_and_need_their_weight(name):
    weight = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).to(torch.float8_e4m3fn)
    rows = unscaled(
        {"a.weight": weight, f"a.{name}": torch.tensor([[0.5], [2.0]]), "a.comfy_quant": torch.zeros(3)}
    )
    assert rows.keys() == {"a.weight"}
    assert rows["a.weight"].tolist() == [[0.5, 1.0], [8.0, 16.0]]
    assert unscaled({"a.weight": weight, f"a.{name}": torch.tensor(2.0)})["a.weight"].tolist() == [
        [2.0, 4.0],
        [8.0, 16.0],
    ]
    with pytest.raises(TrainingError, match=r"b\.weight, which the file does not hold"):
        unscaled({"a.weight": weight, f"b.{name}": torch.tensor(2.0)})
    with pytest.raises(TrainingError, match="3 scales for the 2 rows"):
        unscaled({"a.weight": weight, f"a.{name}": torch.ones(3)})


def test_toy_backbone_is_wan_with_a_text_encoder_of_its_own(tmp_path):
    from latent_physics.toyworld.text import ToyTextEncoder

    files = tiny.native_files(tmp_path)
    torch.manual_seed(0)
    ToyTextEncoder().save(tmp_path / "text.safetensors", {})
    backbone = load_backbone("toy", files | {"text": tmp_path / "text.safetensors"})
    tokens, mask = backbone.embed_prompts(["a red ball falls", "a ball"])
    assert (backbone.latent_space, backbone.cond_dim, tokens.shape[-1]) == ("toy", 4096, 4096)
    assert tokens.shape[1] == backbone.text_length
    shorter = tokens[:, : int(mask.sum(1).max())]
    latent = torch.randn(2, 16, 2, 4, 4)
    with torch.no_grad():
        out = [backbone.predict(latent, torch.tensor([0.2, 0.7]), given) for given in (tokens, shorter)]
    torch.testing.assert_close(*out)
    with pytest.raises(TrainingError, match="native files"):
        load_backbone("toy", tmp_path)


@pytest.mark.parametrize(("width", "space"), [(30 * 64, "cogvideox"), (48 * 64, "cogvideox1.5")])
def test_the_transformer_says_which_scale_a_cogvideox_vae_file_has(width, space, tmp_path, monkeypatch):
    """A VAE file is the same for 2B and 5B, but its latents are not scaled alike."""
    monkeypatch.setattr(load, "_fill", lambda model_type, *args: tiny.cog_vae())
    save_file({"x": torch.zeros(1)}, tmp_path / "vae.safetensors")
    save_file(
        {"model.diffusion_model.patch_embed.proj.weight": torch.zeros(width, 16, 2, 2)},
        tmp_path / "dit.safetensors",
    )
    files = {name: tmp_path / f"{name}.safetensors" for name in ("vae", "dit")}
    assert load_backbone("cogvideox", files, parts=("vae",)).latent_space == space
    (tmp_path / "dit.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match="not a readable safetensors"):
        load_backbone("cogvideox", files, parts=("vae",))


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_a_lora_is_no_transformer_and_rubbish_is_no_file(family, tmp_path):
    key = "diffusion_model.blocks.0.self_attn.q" if family == "wan" else "diffusion_model.blocks.0.q"
    save_file({f"{key}.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    for part, name, message in (
        ("dit", "lora", "lora.safetensors is not a whole model"),
        ("dit", "broken", "broken.safetensors is not a readable"),
        ("text", "broken", "broken.safetensors is not a readable"),
    ):
        with pytest.raises(TrainingError, match=message):
            load_backbone(family, {part: tmp_path / f"{name}.safetensors"}, parts=(part,))


def test_fp8_storage_computes_with_the_rounded_weights(tmp_path):
    """Weights rest in float8; output and LoRA gradients are those of the same weights held in float32."""
    from latent_physics.training.backbones.lora import TuneConfig, attach
    from latent_physics.training.loop.optim import trainable

    files = tiny.native_files(tmp_path)
    stored, plain = (load_backbone("toy", files, parts=("dit",), fp8_storage=fp8) for fp8 in (True, False))
    assert torch.float8_e4m3fn in {value.dtype for value in stored.dit.parameters()}
    for ours, theirs in zip(plain.dit.parameters(), stored.dit.parameters()):
        ours.data = theirs.data.float()
    latent, tokens, t = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 24, 4096), torch.tensor([0.5])
    results = []
    for backbone in (stored, plain):
        attach(backbone, TuneConfig(rank=2), 0)
        for value in trainable(backbone.dit).values():
            value.data.copy_(
                torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.1
            )
        out = backbone.predict(latent, t, tokens)
        out.square().sum().backward()
        results.append((out.detach(), [value.grad for value in trainable(backbone.dit).values()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("family", ["toy", "wan-i2v-clip", "cogvideox", "hunyuan15"])
def test_a_family_says_whether_something_trained_has_no_gradient(family, mode):
    """Several processes wait for every parameter's gradient unless they are told that some have none."""
    width = 3584 if family == "hunyuan15" else tiny_run.WIDTH
    backbone = tiny_run.backbone(family, width)
    attach(backbone, TuneConfig(mode=mode, rank=2, alpha=2))
    channels = backbone.latent_channels
    latent, t = torch.randn(1, channels, 1, 8, 90), torch.tensor([0.4])
    length = backbone.text_length if family == "cogvideox" else 5
    first = None
    if backbone.first_frame == "needed":
        vision = torch.randn(1, 257, backbone.dit.config.image_dim)
        first = FirstFrame(latent=torch.randn_like(latent), vision=vision)
    t = torch.tensor([400]) if backbone.prediction == "v" else t
    out = backbone.predict(latent, t, torch.randn(1, length, width), first=first)
    out.square().sum().backward()
    unused = [name for name, value in trainable(backbone.dit).items() if value.grad is None]
    assert bool(unused) == backbone.leaves_unused
    handler = make_accelerator(LoopConfig(), backbone.leaves_unused).ddp_handler
    assert handler.find_unused_parameters == backbone.leaves_unused
