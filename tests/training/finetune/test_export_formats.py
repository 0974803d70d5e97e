"""Exported files in the loaders of the programs they are for: how many layers are patched, and what the
patched model's weights and answers are."""

from __future__ import annotations

import pytest
import torch
from latent_physics.tests.training.finetune import exported
from latent_physics.training.backbones import load_backbone
from latent_physics.training.backbones.first_frame import concatenated
from latent_physics.training.backbones.hunyuan15 import beside_first
from latent_physics.training.backbones.keys import to_diffusers, to_native
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.console import TrainingError
from latent_physics.training.tasks.export import DTYPES, ExportConfig, export, read_lora
from safetensors.torch import load_file
from torch import nn

FAMILIES = tuple(exported.SHAPES)
TUNE = TuneConfig(rank=4, alpha=12)
RSLORA = TuneConfig(rank=4, alpha=6, rslora=True)
HALF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Relative rounding of a number."""


@pytest.fixture(scope="module", params=FAMILIES)
def lora(request, tmp_path_factory):
    """(family, folder, run) of a LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    return request.param, folder, exported.trained(folder, request.param, TUNE)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """(folder, run) of another LoRA of the toy's size, with rank-stabilised scaling."""
    folder = tmp_path_factory.mktemp("second")
    return folder, exported.trained(folder, "toy", RSLORA, seed=5)


@pytest.fixture(scope="module", params=FAMILIES)
def full(request, tmp_path_factory):
    """(family, folder, run) of a full fine-tune."""
    folder = tmp_path_factory.mktemp("full")
    run = exported.trained(folder, request.param, TuneConfig(mode="full"), learning_rate=3e-3)
    return request.param, folder, run


def comfy_base(comfy, folder, family, **options):
    path = exported.base_file(folder / "base.safetensors", family)
    return comfy.sd.load_diffusion_model(str(path), model_options=options)


def comfy_lora(comfy, patcher, path, strength=1.0):
    """What Load LoRA does."""
    file = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(patcher, None, file, strength, 0)[0]


def comfy_answer(backbone, model, latent, tokens):
    """ComfyUI's model asked the same; its own positions of CogVideoX 1.0-5B are not those of training."""
    first = exported.first_frame(backbone)
    if backbone.family == "hunyuan15":
        return model.diffusion_model(beside_first(latent, first), torch.tensor([500.0]), tokens.clone())
    seen = latent if first is None else concatenated(latent, first.latent)
    clip = {} if first is None or first.vision is None else {"clip_fea": first.vision}
    return model.diffusion_model(seen, torch.tensor([500.0]), tokens, **clip)


def diffusers_pipeline(family, dit):
    """The family's text-to-video pipeline around a transformer alone."""
    import diffusers

    if family == "hunyuan15":
        return None  # its pipeline loads no LoRA
    if not family.startswith("cogvideox"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        return diffusers.WanPipeline(
            tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=dit
        )
    scheduler = diffusers.CogVideoXDPMScheduler()
    return diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=dit, scheduler=scheduler
    )


def patched_layers(dit: nn.Module) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(module, BaseTunerLayer) for module in dit.modules())


def use_comfyui_positions(monkeypatch, backbone, model):
    """CogVideoX 1.0-5B alone: ComfyUI places tokens differently, with and without a LoRA."""
    frames, height, width = backbone.patch_grid((1, 16, *exported.SHAPES["cogvideox-5b"]))
    positions = model.diffusion_model._get_rotary_emb(height, width, frames, device=torch.device("cpu"))
    monkeypatch.setattr(backbone, "_rotary", lambda noisy: positions)


@pytest.mark.comfy
@torch.inference_mode()
def test_comfyui_patches_every_layer_and_gives_our_answer(comfy, lora, monkeypatch):
    family, folder, run = lora
    base = comfy_base(comfy, folder, family)
    patched = comfy_lora(comfy, base, export(ExportConfig(run=folder / "run")))
    assert len(patched.patches) == exported.MODULES[family]
    backbone, (latent, tokens) = run.task.backbone, exported.question(family)
    if family == "cogvideox-5b":
        own = exported.answer(backbone, latent, tokens)
        use_comfyui_positions(monkeypatch, backbone, base.model)
        assert (exported.answer(backbone, latent, tokens) - own).abs().max() > 1e-3
    ours = exported.answer(backbone, latent, tokens)
    assert (ours - comfy_answer(backbone, base.model, latent, tokens)).abs().max() > 1e-3
    patched.patch_model(device_to=torch.device("cpu"))
    theirs = comfy_answer(backbone, patched.model, latent, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.comfy
@torch.inference_mode()
def test_comfyui_takes_a_full_fine_tune(comfy, full, monkeypatch):
    family, folder, run = full
    model = comfy.sd.load_diffusion_model(
        str(export(ExportConfig(run=folder / "run", dtype="float32")))
    ).model
    backbone, (latent, tokens) = run.task.backbone, exported.question(family)
    if family == "cogvideox-5b":
        use_comfyui_positions(monkeypatch, backbone, model)
    ours, theirs = exported.answer(backbone, latent, tokens), comfy_answer(backbone, model, latent, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_diffusers_patches_every_layer_and_gives_our_answer(lora):
    family, folder, run = lora
    path = export(ExportConfig(run=folder / "run", format="diffusers"))
    assert path.name == "tiny-lora-diffusers.safetensors"
    backbone, (latent, tokens) = exported.plain(family), exported.question(family)
    pipeline = diffusers_pipeline(family, backbone.dit)
    before = exported.answer(backbone, latent, tokens)
    if pipeline is None:
        backbone.dit.load_lora_adapter(str(path))
    else:
        pipeline.load_lora_weights(str(path))
    layers = exported.APART.get(family, exported.MODULES[family])
    assert patched_layers(backbone.dit) == layers
    ours = exported.answer(run.task.backbone, latent, tokens)
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(exported.answer(backbone, latent, tokens), ours, rtol=1e-4, atol=1e-4)
    alone = exported.plain(family)  # the transformer's own loader, without a pipeline
    alone.dit.load_lora_adapter(str(path))
    torch.testing.assert_close(exported.answer(alone, latent, tokens), ours, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_diffusers_takes_a_full_fine_tune_as_a_folder_and_so_does_the_trainer(full):
    family, folder, run = full
    out = export(ExportConfig(run=folder / "run", format="diffusers", dtype="float32"))
    latent, tokens = exported.question(family)
    ours = exported.answer(run.task.backbone, latent, tokens)
    kind = type(run.task.backbone.dit)
    backbone = exported.plain(family)
    assert (exported.answer(backbone, latent, tokens) - ours).abs().max() > 1e-3
    dit = kind.from_pretrained(out, subfolder="transformer").eval()
    backbone = exported.plain(family, dit)
    torch.testing.assert_close(exported.answer(backbone, latent, tokens), ours, rtol=1e-4, atol=1e-4)
    again = load_backbone(run.task.backbone.family, out, parts=("dit",)).dit
    for key, value in run.task.backbone.dit.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("form", ["comfyui", "diffusers"])
def test_half_precision_files_round_and_nothing_more(lora, form, dtype):
    _, folder, _ = lora
    out = {"float32": folder / f"{form}-32.safetensors", dtype: folder / f"{form}-{dtype}.safetensors"}
    exact, rounded = (
        load_file(export(ExportConfig(run=folder / "run", out=path, format=form, dtype=name)))
        for name, path in out.items()
    )
    assert exact.keys() == rounded.keys()
    for key, value in exact.items():
        assert rounded[key].dtype == (torch.float32 if key.endswith(".alpha") else DTYPES[dtype])
        assert ((rounded[key].float() - value).abs() <= HALF[dtype] * value.abs() + 1e-7).all()


@pytest.mark.comfy
@pytest.mark.parametrize("dtype", HALF)
def test_comfyui_reads_half_precision_loras(comfy, second, dtype):
    folder, run = second
    path = export(ExportConfig(run=folder / "run", out=folder / f"{dtype}.safetensors", dtype=dtype))
    patched = comfy_lora(comfy, comfy_base(comfy, folder, "toy"), path)
    assert len(patched.patches) == exported.MODULES["toy"]
    patched.patch_model(device_to=torch.device("cpu"))
    state = exported.plain("toy").dit.state_dict()
    expected = exported.with_loras(state, [(run, RSLORA, 1.0)])
    found = to_diffusers(patched.model.diffusion_model.state_dict(), exported.plain("toy").dit_keys)
    for key, value in expected.items():
        change = (value - state[key]).abs().max()
        assert (found[key] - value).abs().max() <= 4 * HALF[dtype] * change + 1e-6


@pytest.mark.comfy
def test_comfyui_patches_weights_that_rest_in_float8(comfy, second):
    """As with Load Diffusion Model's fp8_e4m3fn: the patched weight is the sum, rounded to a neighbour in
    float8."""
    folder, run = second
    base = comfy_base(comfy, folder, "toy", dtype=torch.float8_e4m3fn)
    maps = exported.plain("toy").dit_keys
    stored = to_diffusers(base.model.diffusion_model.state_dict(), maps)
    stored = {key: value.clone() for key, value in stored.items()}
    assert torch.float8_e4m3fn in {value.dtype for value in stored.values()}
    patched = comfy_lora(comfy, base, export(ExportConfig(run=folder / "run")))
    assert len(patched.patches) == exported.MODULES["toy"]
    patched.patch_model(device_to=torch.device("cpu"))
    found = to_diffusers(patched.model.diffusion_model.state_dict(), maps)
    plain = {key: value.float() for key, value in stored.items()}
    expected, moved = exported.with_loras(plain, [(run, RSLORA, 1.0)]), 0
    for key in (key for key, value in stored.items() if value.dtype == torch.float8_e4m3fn):
        step = expected[key].abs().clamp(min=2.0**-6) * 2.0**-3  # at most, of 3 bits of mantissa
        assert ((found[key].float() - expected[key]).abs() <= step).all()
        moved += (plain[key] != found[key].float()).any().item()
    assert moved == exported.MODULES["toy"]


@pytest.mark.parametrize("strengths", [(0.5, 0.0), (1.5, 0.0), (0.7, -0.4)])
@torch.inference_mode()
@pytest.mark.comfy
def test_strengths_and_two_loras_add_up_in_both_programs(comfy, tmp_path, toy_pair, strengths):
    runs = [(run, tune, strength) for (_, run, tune), strength in zip(toy_pair, strengths) if strength]
    folders = [folder for (folder, _, _), strength in zip(toy_pair, strengths) if strength]
    state = exported.plain("toy").dit.state_dict()
    sums, (latent, tokens) = exported.plain("toy"), exported.question("toy")
    sums.dit.load_state_dict(exported.with_loras(state, runs))
    expected = exported.answer(sums, latent, tokens)
    patcher, other = comfy_base(comfy, tmp_path, "toy"), exported.plain("toy")
    for number, (folder, (_, _, strength)) in enumerate(zip(folders, runs)):
        patcher = comfy_lora(comfy, patcher, export(ExportConfig(run=folder / "run")), strength)
        path = export(ExportConfig(run=folder / "run", format="diffusers"))
        diffusers_pipeline("toy", other.dit).load_lora_weights(str(path), adapter_name=f"lora{number}")
    other.dit.set_adapters([f"lora{n}" for n in range(len(runs))], [strength for _, _, strength in runs])
    torch.testing.assert_close(exported.answer(other, latent, tokens), expected, rtol=1e-4, atol=1e-4)
    patcher.patch_model(device_to=torch.device("cpu"))
    theirs = comfy_answer(other, patcher.model, latent, tokens)
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def toy_pair(second, tmp_path_factory):
    """(folder, run, tune) of two LoRAs of one base."""
    folder = tmp_path_factory.mktemp("first")
    return [(folder, exported.trained(folder, "toy", TUNE), TUNE), (*second, RSLORA)]


def test_what_cannot_be_written_or_read_back_is_one_sentence(full, second, tmp_path):
    _, folder, _ = full
    with pytest.raises(TrainingError, match=r"is a folder: give a folder's name\."):
        export(ExportConfig(run=folder / "run", out=tmp_path / "model.safetensors", format="diffusers"))
    path = export(ExportConfig(run=second[0] / "run", format="diffusers"))
    with pytest.raises(TrainingError, match="diffusers_lora"):
        read_lora(path, "wan", "toy", RSLORA)


def test_weights_that_are_not_the_whole_transformer_are_told(full):
    from latent_physics.training.backbones.formats import diffusers_config, full_to_native

    _, _, run = full
    backbone = run.task.backbone
    config = run.task.about["dit_config"]
    values = dict(backbone.dit.state_dict())
    assert (
        to_native(values, backbone.dit_keys).keys() <= full_to_native(values, backbone.family, config).keys()
    )
    values.pop("proj_out.weight")
    with pytest.raises(TrainingError, match=r"'proj_out\.weight' is in one of the two alone"):
        diffusers_config(values, backbone.family, config)
