"""HunyuanVideo 1.5: predictions, VAE, words and files are those of ComfyUI and of diffusers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from latent_physics.tests.training.backbones import tiny
from latent_physics.training.backbones import load_backbone, qwen
from latent_physics.training.backbones.first_frame import FirstFrame
from latent_physics.training.backbones.formats import lora_to_diffusers, lora_to_native
from latent_physics.training.backbones.header import hunyuan_header
from latent_physics.training.backbones.hunyuan15 import HunyuanVideo15Backbone, beside_first, is_glyph
from latent_physics.training.backbones.keys import (
    HUNYUAN15_DIT,
    HUNYUAN15_VAE,
    KeyMapError,
    to_diffusers,
    to_native,
)
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import TrainingError
from safetensors.torch import load_file, save_file
from torch import nn

SPACE = "hunyuan_video1.5"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny.native_files(tmp_path_factory.mktemp("hunyuan15"), "hunyuan15")


@pytest.fixture(scope="module")
def ours(files):
    return load_backbone("hunyuan15", files, parts=("dit", "vae"))


def words(prompt: int, quoted: int, rows: int = 1) -> torch.Tensor:
    """Qwen's tokens, then byT5's."""
    generator = torch.Generator().manual_seed(prompt)
    tokens = torch.randn(rows, prompt + quoted, 3584, generator=generator)
    tokens[:, prompt:, 1472:] = 0
    return tokens


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.comfy
@pytest.mark.parametrize("quoted", [0, 5])
@pytest.mark.parametrize("image", [False, True])
@torch.inference_mode()
def test_it_predicts_what_comfyui_predicts(comfy, ours, files, quoted, image):
    """Through the stock loader; with words in quotes, with a first frame and what SigLIP saw in it."""
    theirs = comfy.sd.load_diffusion_model(str(files["dit"])).model
    assert type(theirs).__name__ == "HunyuanVideo15"
    latent, tokens, t = torch.randn(2, 32, 3, 4, 6), words(9, quoted, 2), torch.tensor([0.5, 0.9])
    first, given = None, {}
    if image:
        first = FirstFrame(latent=torch.randn(2, 32, 1, 4, 6), vision=torch.randn(2, 10, 1152))
        given = {"clip_fea": first.vision}
    if quoted:
        given["txt_byt5"] = tokens[:, 9:, :1472].clone()
    out = ours.predict(latent, t, tokens, first=first)
    seen = beside_first(latent, first)
    close(out, theirs.diffusion_model(seen, t * 1000, tokens[:, :9].clone(), **given))


@pytest.mark.comfy
@torch.inference_mode()
def test_a_first_frame_stands_where_comfyui_puts_it(comfy, ours, files):
    """HunyuanVideo15ImageToVideo's conditioning, made by its model, is what we put beside the noise."""
    model = comfy.sd.load_diffusion_model(str(files["dit"])).model
    noise, encoded = torch.randn(1, 32, 3, 2, 3), torch.randn(1, 32, 1, 2, 3)
    image, mask = torch.zeros(1, 32, 3, 2, 3), torch.ones(1, 1, 3, 2, 3)
    image[:, :, :1], mask[:, :, :1] = encoded, 0.0
    given = {"concat_latent_image": image, "concat_mask": mask}
    theirs = model.concat_cond(noise=noise, device=torch.device("cpu"), **given)
    first = FirstFrame(latent=ours.normalise(encoded))
    torch.testing.assert_close(beside_first(noise, first)[:, 32:], theirs)
    theirs = model.concat_cond(noise=noise, device=torch.device("cpu"))
    torch.testing.assert_close(beside_first(noise, None)[:, 32:], theirs)


@torch.inference_mode()
def test_it_predicts_what_diffusers_predicts_also_with_padded_prompts():
    """Its forward, which sorts and masks its words in another way, and fills an absent image with zeros."""
    backbone = HunyuanVideo15Backbone(latent_space=SPACE, dit=tiny.hunyuan_dit())
    latent, t = torch.randn(2, 32, 3, 4, 6), torch.tensor([0.3, 0.8])
    prompts, glyphs = torch.randn(2, 9, 3584), torch.randn(2, 5, 1472)
    masks = torch.arange(9)[None] < torch.tensor([[9], [4]]), torch.arange(5)[None] < torch.tensor([[0], [5]])
    theirs = backbone.dit(
        beside_first(latent, None), t * 1000, prompts, masks[0], encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=masks[1], image_embeds=torch.zeros(2, 729, 1152), return_dict=False,
    )[0]  # fmt: skip
    tokens = torch.cat([prompts, nn.functional.pad(glyphs, (0, 3584 - 1472))], dim=1)
    mask = torch.cat(masks, dim=1)
    close(backbone.predict(latent, t, tokens * mask.unsqueeze(-1), mask), theirs)
    alone = backbone.predict(latent[1:], t[1:], tokens[1:][mask[1:]][None])
    close(alone, theirs[1:])


def test_padding_has_no_gradient_and_none_is_not_a_number():
    backbone = HunyuanVideo15Backbone(latent_space=SPACE, dit=tiny.hunyuan_dit())
    backbone.dit.requires_grad_(True).enable_gradient_checkpointing()
    tokens = words(6, 0, 2).requires_grad_()
    mask = torch.arange(6)[None] < torch.tensor([[6], [2]])
    out = backbone.predict(torch.randn(2, 32, 2, 2, 4), torch.tensor([0.3, 0.8]), tokens, mask)
    out.square().sum().backward()
    assert (tokens.grad[1, 2:] == 0).all()
    assert tokens.grad[1, :2].abs().min() > 0
    assert all(value.grad.isfinite().all() for value in backbone.dit.parameters() if value.grad is not None)


@pytest.mark.comfy
@torch.inference_mode()
def test_vae_gives_comfyuis_latents(comfy, ours, files, monkeypatch):
    """ComfyUI lets the VAE's middle see frames to come, which its training did not; else it is the same."""
    import diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 as theirs_in_diffusers
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    sizes = {
        "block_out_channels": [32, 32, 64, 64, 64], "in_channels": 3, "out_channels": 3, "num_res_blocks": 2,
        "ffactor_spatial": 16, "ffactor_temporal": 4, "z_channels": 32,
    }  # fmt: skip
    half = "comfy.ldm.hunyuan_video.vae_refiner."
    theirs = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"},
        encoder_config={"target": f"{half}Encoder", "params": sizes},
        decoder_config={"target": f"{half}Decoder", "params": sizes},
    ).eval()
    lacking, unknown = theirs.load_state_dict(load_file(files["vae"]), strict=False)
    assert not unknown
    assert all(".temb_proj." in key for key in lacking)  # of images, never called
    for frames in (1, 9):
        video = torch.rand(1, 3, frames, 32, 48)
        encoded = theirs.encode(video * 2 - 1)
        if frames > 1:
            assert (ours.encode_video(video) - encoded * 1.03682).abs().max() > 1e-2
            block = theirs_in_diffusers.HunyuanVideo15AttnBlock
            monkeypatch.setattr(block, "prepare_causal_attention_mask", lambda *a, **k: None)
        close(ours.encode_video(video), encoded * 1.03682)
        decoded = ours.vae.decode(encoded, return_dict=False)[0]
        close(decoded, theirs.decode(encoded))


def test_real_blocks_map_whole():
    """One of 54 at real size on the meta device: every key maps both ways; the middle of ComfyUI's names."""
    from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel

    with torch.device("meta"):
        dit = HunyuanVideo15Transformer3DModel(num_layers=1).state_dict()
        vae = AutoencoderKLHunyuanVideo15().state_dict()
    for state, maps in ((dit, HUNYUAN15_DIT), (vae, HUNYUAN15_VAE)):
        native = to_native(state, maps)
        back = to_diffusers(native, maps)
        assert {key: value.shape for key, value in back.items()} == {
            key: value.shape for key, value in state.items()
        }
    assert to_native(dit, HUNYUAN15_DIT)["double_blocks.0.img_attn.qkv.weight"].shape == (3 * 2048, 2048)


@pytest.mark.comfy
def test_real_blocks_have_comfyuis_names_and_shapes(comfy):
    import comfy.model_detection
    from diffusers import HunyuanVideo15Transformer3DModel

    with torch.device("meta"):
        native = to_native(HunyuanVideo15Transformer3DModel(num_layers=1).state_dict(), HUNYUAN15_DIT)
        found = comfy.model_detection.detect_unet_config(native, "")
        kind = comfy.ldm.hunyuan_video.model.HunyuanVideo
        theirs = kind(**found, operations=comfy.ops.disable_weight_init).state_dict()
    assert {key: value.shape for key, value in native.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_native_files_equal_the_diffusers_model_under_old_names_too(ours, files, tmp_path):
    expected = tiny.hunyuan_dit().state_dict()
    for key, value in ours.dit.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    wanted = tiny.hunyuan_vae().state_dict()
    for key, value in ours.vae.state_dict().items():
        torch.testing.assert_close(value, wanted[key])
    assert (ours.latent_space, ours.spatial_stride, ours.encode_video(torch.rand(1, 3, 5, 16, 16)).shape) == (
        SPACE, 16, (1, 32, 2, 1, 1),
    )  # fmt: skip
    old = {
        key.replace("_attn.qkv.", "_attn_qkv.").replace("_mod.lin.", "_mod.linear."): value
        for key, value in load_file(files["dit"]).items()
    }
    save_file(old, tmp_path / "old.safetensors")
    again = load_backbone("hunyuan15", {"dit": tmp_path / "old.safetensors"}, parts=("dit",)).dit.state_dict()
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def test_models_that_cannot_be_trained_say_why(files, tmp_path):
    def refused(**changes) -> str:
        state = to_native(tiny.hunyuan_dit(num_layers=1, **changes).state_dict(), HUNYUAN15_DIT)
        save_file(state, tmp_path / "dit.safetensors")
        with pytest.raises(TrainingError) as caught:
            load_backbone("hunyuan15", {"dit": tmp_path / "dit.safetensors"}, parts=("dit",))
        return str(caught.value)

    assert "is told a second time" in refused(use_meanflow=True)
    assert "takes 98 channels for 32 of latents: it enlarges a video" in refused(in_channels=98)
    state = to_native(tiny.wan_dit().state_dict(), load_backbone("toy", parts=()).dit_keys)
    save_file(state, tmp_path / "wan.safetensors")
    with pytest.raises(TrainingError, match="not a weight of this model family"):
        load_backbone("hunyuan15", {"dit": tmp_path / "wan.safetensors"}, parts=("dit",))
    state = load_file(files["dit"])
    save_file(dict(list(state.items())[:-3]), tmp_path / "cut.safetensors")
    with pytest.raises(TrainingError, match=r"cut\.safetensors (does not fit|is not a whole model)"):
        load_backbone("hunyuan15", {"dit": tmp_path / "cut.safetensors"}, parts=("dit",))
    third = {key: value for key, value in tiny.hunyuan_dit().state_dict().items() if ".to_v." not in key}
    with pytest.raises(KeyMapError, match="lacks part 3 of 3; the file is not whole"):
        to_native(third, HUNYUAN15_DIT)


def test_a_lora_of_queries_alone_is_joined_with_nothing_and_comes_back():
    """The joined layer's product is the queries' own, above zeros."""
    torch.manual_seed(0)
    name = "transformer_blocks.1.attn.to_q"
    down, up = torch.randn(4, 128), torch.randn(128, 4)
    values = {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
    tune = TuneConfig(rank=4, alpha=6)
    native = lora_to_native(values, "hunyuan15", tune)
    start = "diffusion_model.double_blocks.1.img_attn.qkv."
    assert native.keys() == {start + end for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    product = native[f"{start}lora_B.weight"] @ native[f"{start}lora_A.weight"]
    torch.testing.assert_close(product[:128], up @ down)
    assert not product[128:].any()
    assert native[f"{start}alpha"].item() / 12 == 6 / 4
    back = lora_to_diffusers(native, "hunyuan15")
    assert back.keys() == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    assert torch.equal(back[f"{name}.lora_A.weight"], down)
    assert torch.equal(back[f"{name}.lora_B.weight"], up)


# -- words ---------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """An encoder that answers with its tokens' numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.config = SimpleNamespace(hidden_size=width)
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        self.seen.append(input_ids[0].tolist())
        states = input_ids[..., None].float() * self.weight
        return SimpleNamespace(hidden_states=[states, states + 1, states + 2], last_hidden_state=states)


@pytest.fixture(scope="module")
def reader(comfyui_path):
    """Our encoder of words with ComfyUI's own copies of the two tokenizers."""
    from transformers import AutoTokenizer, ByT5Tokenizer

    tokenizer = AutoTokenizer.from_pretrained(comfyui_path / "comfy" / "text_encoders" / "qwen25_tokenizer")
    return qwen.HunyuanText(Recorder(3584), tokenizer, Recorder(1472), ByT5Tokenizer())


PROMPTS = ("a ball falls", 'a sign says "open" and \u201cin\u201d', "")


@pytest.mark.comfy
def test_words_are_read_as_comfyui_reads_them(comfy, reader):
    """The same tokens go into both encoders, and the same part of the answer is kept."""
    from comfy.text_encoders.hunyuan_image import HunyuanImageTEModel
    from comfy.text_encoders.hunyuan_video import HunyuanVideo15Tokenizer

    tokenizer = HunyuanVideo15Tokenizer()
    for prompt in PROMPTS:
        reader.encoder.seen.clear()
        reader.glyphs.seen.clear()
        tokens, mask = reader([prompt], 1000)
        theirs = tokenizer.tokenize_with_weights(prompt)
        ids = torch.tensor([[token for token, _ in theirs["qwen25_7b"][0]]])
        assert reader.encoder.seen == ids.tolist()
        assert reader.glyphs.seen == ([[token for token, _ in theirs["byt5"][0]]] if "byt5" in theirs else [])
        model = HunyuanImageTEModel.__new__(HunyuanImageTEModel)
        nn.Module.__init__(model)
        answer = (ids[..., None].float(), None, {"attention_mask": torch.ones_like(ids)})
        model.clip_name = model.clip = "qwen25_7b"
        model.qwen25_7b = SimpleNamespace(encode_token_weights=lambda pairs, answer=answer: answer)
        model.byt5_small = None
        kept, _, _ = model.encode_token_weights(theirs)
        glyph = is_glyph(tokens)[0]
        assert tokens[0][~glyph][:, 0].tolist() == kept[0, :, 0].tolist()
        assert int(glyph.sum()) == len((reader.glyphs.seen or [[]])[0])
        assert mask.all()


@pytest.mark.comfy
def test_prompts_of_a_batch_are_padded_and_pooled_without_what_was_quoted(reader):
    backbone = HunyuanVideo15Backbone(latent_space=SPACE, text=reader)
    tokens, mask = backbone.embed_prompts(PROMPTS)
    assert tokens.shape[:2] == mask.shape
    for row, prompt in enumerate(PROMPTS):
        alone, _ = backbone.embed_prompts([prompt])
        assert torch.equal(tokens[row][mask[row]], alone[0])
        assert (tokens[row][~mask[row]] == 0).all()
        wanted = alone[0][~is_glyph(alone)[0]].mean(dim=0)
        torch.testing.assert_close(backbone.pool(tokens, mask)[row], wanted)
    assert backbone.is_cut(["a ball", "a ball " * 600]) == [False, True]


@pytest.mark.comfy
@torch.inference_mode()
def test_a_qwen_file_gives_comfyuis_hidden_states(comfy, tmp_path):
    """Weights as ComfyUI's text_encoders folder holds them; the part that sees pictures is left out. In
    float8 with scales too."""
    from comfy.text_encoders.llama import Llama2_ as Llama
    from comfy.text_encoders.llama import Qwen25_7BVLI_Config
    from latent_physics.tests.training.backbones.test_backbones import in_fp8

    size = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    theirs = Llama(Qwen25_7BVLI_Config(**size), ops=comfy.ops.disable_weight_init, dtype=torch.float32)
    tiny.randomised(theirs)
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"visual.patch_embed.proj.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(2, 2)}
    save_file(state, tmp_path / "qwen.safetensors")
    ids = torch.randint(0, 50, (1, 7))
    expected = theirs(ids, intermediate_output=-3, final_layer_norm_intermediate=False)[1]
    ours = qwen.qwen_from_file(tmp_path / "qwen.safetensors", torch.float32)
    close(ours(input_ids=ids, output_hidden_states=True).hidden_states[qwen.LAYER], expected)
    name = "model.layers.0.mlp.up_proj."
    state[f"{name}weight"], state[f"{name}scale_weight"] = in_fp8(state[f"{name}weight"])
    save_file(state, tmp_path / "scaled.safetensors")
    rough = qwen.qwen_from_file(tmp_path / "scaled.safetensors", torch.float32).state_dict()
    stored = state[f"{name}weight"].float() * state[f"{name}scale_weight"]
    assert torch.equal(rough["layers.0.mlp.up_proj.weight"], stored)


def test_a_diffusers_folder_is_read_whole(tmp_path):
    """Two encoders with their tokenizers, VAE and transformer; one that was made for first frames says so."""
    from transformers import (
        ByT5Tokenizer,
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLTextModel,
        T5Config,
        T5EncoderModel,
    )

    tiny.hunyuan_dit(text_embed_dim=1536, task_type="i2v").save_pretrained(tmp_path / "transformer")
    tiny.hunyuan_vae().save_pretrained(tmp_path / "vae")
    tiny.word_tokenizer([qwen.START, "user", "a", "ball", "falls"]).save_pretrained(tmp_path / "tokenizer")
    sizes = {"vocab_size": 16, "hidden_size": 1536, "intermediate_size": 8, "num_hidden_layers": 3,
             "num_attention_heads": 12, "num_key_value_heads": 1}  # fmt: skip
    Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**sizes)).save_pretrained(tmp_path / "text_encoder")
    sizes = {"vocab_size": 384, "d_model": 1472, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes)).save_pretrained(tmp_path / "text_encoder_2")
    ByT5Tokenizer().save_pretrained(tmp_path / "tokenizer_2")
    header = hunyuan_header(tmp_path)
    assert (header.first_frame, header.vision, hunyuan_header("somewhere/else")) == ("needed", True, None)
    backbone = load_backbone("hunyuan15", tmp_path)
    tokens, mask = backbone.embed_prompts(['a ball "falls"', "a"])
    glyphs = (is_glyph(tokens) & mask).sum(dim=1).tolist()
    assert (tokens.shape[2], glyphs) == (1536, [len('Text "falls". ') + 1, 0])
    assert mask[0].sum() > mask[1].sum() > 0
    latent = backbone.encode_video(torch.rand(1, 3, 5, 16, 16))
    with pytest.raises(TrainingError, match="makes videos of a first frame, which these clips lack"):
        backbone.predict(latent, torch.tensor([0.5]), tokens[:1])


@pytest.mark.comfy
@torch.inference_mode()
def test_siglip_sees_what_comfyui_sees(comfy, tmp_path):
    """The middle square of a picture; the head, which no one reads, may be in the file."""
    from comfy.clip_vision import ClipVisionModel
    from latent_physics.training.backbones.first_frame import siglip_from_file

    config = {
        "hidden_size": 144, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "num_channels": 3,
        "model_type": "siglip_vision_model", "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    theirs = ClipVisionModel(config)
    tiny.randomised(theirs.model.float())
    for module in theirs.model.modules():  # it has 1e-5 there, SigLIP was trained with 1e-6
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    state = theirs.model.state_dict() | {"vision_model.head.probe": torch.zeros(1, 1, 144)}
    image = torch.rand(1, 3, 48, 80)
    seen = theirs.encode_image(image.movedim(1, -1), crop=True)["last_hidden_state"]
    ours = siglip_from_file(tmp_path / "siglip.safetensors", state, torch.float32)(image)
    assert ours.shape == (1, 4, 144)
    close(ours, seen.float())
    del state["vision_model.post_layernorm.bias"]
    with pytest.raises(TrainingError, match="is not SigLIP's vision encoder"):
        siglip_from_file(tmp_path / "siglip.safetensors", state, torch.float32)


def test_files_of_words_that_are_missing_or_others_are_told(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    source = {"text": tmp_path / "x.safetensors"}
    with pytest.raises(TrainingError, match="'text_also' is missing: byT5's file"):
        load_backbone("hunyuan15", source, parts=("text",))
    source |= {"text_also": tmp_path / "x.safetensors"}
    with pytest.raises(TrainingError, match="'tokenizer' is missing"):
        load_backbone("hunyuan15", source, parts=("text",))
    with pytest.raises(TrainingError, match=r"x\.safetensors is not a Qwen2\.5-VL encoder"):
        load_backbone("hunyuan15", source | {"tokenizer": "nowhere"}, parts=("text",))
