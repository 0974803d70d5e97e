"""Teachers: grids, positions, causality, key maps, flow, the cache on disk. Tiny random models of transformers' own classes."""

from __future__ import annotations

import pytest
import torch
from latent_physics.encoders import (
    TOY_WEIGHTS,
    RaftFlow,
    TeacherError,
    VideoMAETeacher,
    VJEPATeacher,
    load_raft,
    load_teacher,
)
from latent_physics.encoders.base import imagenet
from latent_physics.methods.weights import WeightsError
from latent_physics.training.data.feature_cache import FeatureCache
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_small
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

MAE = {"image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 32, "num_hidden_layers": 2,
       "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
JEPA = {"crop_size": 32, "patch_size": 8, "frames_per_clip": 8, "tubelet_size": 2, "hidden_size": 48, "num_attention_heads": 2,
        "num_hidden_layers": 2, "mlp_ratio": 2, "pred_hidden_size": 48, "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 2,
        "pred_num_mask_tokens": 2}  # fmt: skip


def videomae() -> VideoMAETeacher:
    torch.manual_seed(0)
    return VideoMAETeacher(VideoMAEModel(VideoMAEConfig(**MAE)), "tiny")


def vjepa() -> VJEPATeacher:
    torch.manual_seed(0)
    return VJEPATeacher(VJEPA2Model(VJEPA2Config(**JEPA)), "tiny")


def test_videomae_at_its_own_size_is_transformers_model():
    teacher, video = videomae(), torch.rand(2, 3, 8, 32, 32)
    expected = VideoMAEModel(VideoMAEConfig(**MAE))
    expected.load_state_dict(teacher.model.state_dict())
    with torch.no_grad():
        tokens = expected.eval()(imagenet(video).transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(teacher.features(video).flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "grid"), [((8, 96, 144), (4, 4, 6)), ((13, 32, 16), (6, 4, 2)), ((4, 24, 24), (2, 3, 3))])
def test_videomae_takes_any_clip(shape, grid):
    teacher = videomae()
    assert teacher.features(torch.rand(1, 3, *shape)).shape == (1, 32, *grid)
    assert teacher.features(torch.rand(1, 3, 8, 32, 32)).shape == (1, 32, 4, 4, 4)


def test_videomae_v2_keys_give_the_same_encoder(tmp_path):
    """A state dict in the authors' names, made from a transformers model, loads back to the same weights."""
    model = VideoMAEModel(VideoMAEConfig(**(MAE | {"hidden_size": 64, "num_attention_heads": 1, "use_mean_pooling": False})))
    state, theirs = model.state_dict(), {}
    for layer in range(2):
        ours = f"encoder.layer.{layer}"
        pre = f"blocks.{layer}"
        names = ("query", "key", "value")
        theirs[f"{pre}.attn.qkv.weight"] = torch.cat([state[f"{ours}.attention.attention.{name}.weight"] for name in names])
        for bias, name in (("q", "query"), ("v", "value")):
            theirs[f"{pre}.attn.{bias}_bias"] = state[f"{ours}.attention.attention.{name}.bias"] + 1
        for a, b in [("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("attn.proj", "attention.output.dense"),
                     ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")]:  # fmt: skip
            for part in ("weight", "bias"):
                theirs[f"{pre}.{a}.{part}"] = state[f"{ours}.{b}.{part}"]
    for part in ("weight", "bias"):
        theirs[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        theirs[f"norm.{part}"] = state[f"layernorm.{part}"]
    theirs["head.weight"] = torch.zeros(10, 64)
    save_file({f"model.{key}": value.contiguous() for key, value in theirs.items()}, tmp_path / "v2.safetensors")
    loaded = load_teacher("videomae", tmp_path / "v2.safetensors").model.state_dict()
    assert set(loaded) == set(state)
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value + 1 if key.endswith(("query.bias", "value.bias")) else value)


def test_vjepa_prediction_does_not_see_the_future():
    teacher = vjepa()
    video = torch.rand(1, 3, 8, 40, 48)
    other = video.clone()
    other[:, :, 4:] = torch.rand(1, 3, 4, 40, 48)
    guess = teacher.predicted(video, context=2)
    assert guess.shape == (1, 48, 2, 4, 4)
    torch.testing.assert_close(guess, teacher.predicted(other, context=2))
    leak = teacher.features(video)[:, :, :2] - teacher.features(other)[:, :, :2]
    assert leak.abs().max() > 1e-4  # the encoder given the whole clip does see it
    other = video.clone()
    other[:, :, :4] = torch.rand(1, 3, 4, 40, 48)
    assert (guess - teacher.predicted(other, context=2)).abs().max() > 1e-4
    for context in (0, 4):
        with pytest.raises(TeacherError, match="of 4"):
            teacher.predicted(video, context)


def test_raft_gives_the_last_flow_between_tubelets():
    torch.manual_seed(0)
    model = raft_small(weights=None).eval()
    flow = RaftFlow(model, "tiny").flow(video := torch.rand(1, 3, 7, 128, 136), step=2, size=(128, 136))
    assert flow.shape == (1, 2, 2, 128, 136)
    with torch.no_grad():
        expected = model(video[:, :, 2] * 2 - 1, video[:, :, 4] * 2 - 1)[-1]
    torch.testing.assert_close(flow[:, :, 1], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(TeacherError, match="at least 128"):
        RaftFlow(model, "tiny").flow(video, size=(64, 64))


def test_the_toy_encoders_that_ship_are_small_and_know_something():
    """The file sizes; and V-JEPA 2 expects of a clip rather its own future than that of another clip of the same world."""
    from latent_physics.toyworld import mixture

    files = [TOY_WEIGHTS / f"toy_{name}.safetensors" for name in ("videomae", "vjepa2")]
    assert sum(path.stat().st_size for path in files) <= 8e6
    clips = torch.cat([mixture(8, seed, 0.0)[0][:, :, 1:33] for seed in (901, 902)])
    teacher = load_teacher("toy_vjepa2")
    whole = teacher.features(clips).movedim(1, -1)
    future = torch.nn.functional.layer_norm(whole, whole.shape[-1:])[:, 10:]
    expected = teacher.predicted(clips, 10).movedim(1, -1)
    own, other = ((expected - target).abs().mean() for target in (future, future.roll(8, dims=0)))
    assert own < other  # by a little: clips of one world share most of what their features say
    assert load_teacher("toy_videomae").features(clips[:1]).shape == (1, 128, 16, 8, 8)


def test_raft_files_that_are_none_are_one_sentence(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("cut", "other"):
        with pytest.raises(TeacherError, match=f"{name}.safetensors does not hold torchvision's RAFT weights"):
            load_raft(tmp_path / f"{name}.safetensors")
    with pytest.raises(TeacherError, match="neither raft_large, raft_small nor a safetensors file"):
        load_raft("raft_medium")


def test_a_saved_teacher_comes_back(tmp_path):
    for teacher, name in ((videomae(), "toy_videomae"), (vjepa(), "toy_vjepa2")):
        teacher.save(tmp_path / f"{name}.safetensors", {"identity": "one"}, torch.float32)
        again = load_teacher(name, tmp_path / f"{name}.safetensors")
        video = torch.rand(1, 3, 8, 32, 32)
        torch.testing.assert_close(again.features(video), teacher.features(video))


def test_other_weights_under_the_same_name_are_another_teacher(tmp_path):
    """Cached features of an older encoder must not pass for those of a newer one."""
    teacher, seen = videomae(), []
    for shift in (0.0, 0.5):
        with torch.no_grad():
            teacher.model.embeddings.patch_embeddings.projection.bias.add_(shift)
        teacher.save(tmp_path / "toy_videomae.safetensors", {"identity": "toy videomae"}, torch.float32)
        teacher.model.save_pretrained(tmp_path / "folder")
        file, folder = load_teacher("toy_videomae", tmp_path / "toy_videomae.safetensors"), tmp_path / "folder"
        assert file.identity == load_teacher("toy_videomae", tmp_path / "toy_videomae.safetensors").identity
        seen.append((file.identity, load_teacher("videomae", folder).identity))
    cache = FeatureCache(tmp_path)
    for old, new in zip(*seen):
        cache.write(old, "clip", {"features": torch.zeros(1)})
        assert not cache.has(new, "clip")


@pytest.mark.parametrize("name", ["videomae", "vjepa2"])
def test_folders_with_pickles_are_not_opened(tmp_path, name, monkeypatch):
    """The same folder loads once its weights are safetensors."""
    model = (videomae() if name == "videomae" else vjepa()).model
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    def opened(*_, **__):
        raise AssertionError("a pickle was opened")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", opened)
        with pytest.raises(TeacherError, match="holds no safetensors weights; pickles can run code") as caught:
            load_teacher(name, tmp_path)
        assert "\n" not in str(caught.value)
    model.save_pretrained(tmp_path)
    video = torch.rand(1, 3, 8, 32, 32)
    expected = (videomae() if name == "videomae" else vjepa()).features(video)
    torch.testing.assert_close(load_teacher(name, tmp_path).features(video), expected)


def test_features_are_found_by_content_and_damage_is_noticed(tmp_path):
    cache = FeatureCache(tmp_path)
    assert not cache.has("a", "clip")
    cache.write("a", "clip", {"features": torch.full((2, 3), 1 / 3), "exact_saliency": torch.full((2,), 1 / 3)})
    assert cache.has("a", "clip")
    assert not cache.has("b", "clip")
    read = cache.read("a", "clip")
    assert read["exact_saliency"][0].item() == torch.tensor(1 / 3).item()
    assert read["features"][0, 0].item() == pytest.approx(1 / 3, rel=1e-3)
    cache.path("a", "clip").write_bytes(b"cut off")
    with pytest.raises(WeightsError):
        cache.read("a", "clip")
    assert not cache.has("a", "clip")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [("dino", None, "choose one of"), ("videomae", "/nowhere/at/all", "could not be loaded"), ("videomae", "x.pth", "pickle"),
     ("toy_videomae", "no.safetensors", "does not exist")],
)  # fmt: skip
def test_teachers_that_cannot_be_loaded_are_one_sentence(name, source, message):
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(name, source)
    assert "\n" not in str(caught.value)
