"""Teachers: grids, positions, causality, key maps, flow, the cache on disk. Tiny random models of
transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from latent_physics.encoders import (
    DEFAULT_SOURCE,
    TOY_WEIGHTS,
    RaftFlow,
    TeacherError,
    VideoMAETeacher,
    VJEPATeacher,
    load_raft,
    load_teacher,
)
from latent_physics.encoders.base import imagenet
from latent_physics.encoders.videomae import positions
from latent_physics.methods.weights import WeightsError, read_info, save_weights
from latent_physics.tests.training.finetune.tiny_teachers import JEPA, MAE
from latent_physics.training.data.feature_cache import FeatureCache
from safetensors.torch import load_file, save_file
from torchvision.models.optical_flow import raft_small
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)


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
    torch.testing.assert_close(
        teacher.features(video).flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "grid"), [((8, 96, 144), (4, 4, 6)), ((13, 32, 16), (6, 4, 2)), ((4, 24, 24), (2, 3, 3))]
)
def test_videomae_takes_any_clip(shape, grid):
    teacher = videomae()
    assert teacher.features(torch.rand(1, 3, *shape)).shape == (1, 32, *grid)
    assert teacher.features(torch.rand(1, 3, 8, 32, 32)).shape == (1, 32, 4, 4, 4)


V2 = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "tubelet_size": 2,
"num_frames": 8,
      "use_mean_pooling": True}  # fmt: skip
"""`model_config` in config.json of a hub repository of VideoMAE v2, small."""


def v2_state() -> dict[str, torch.Tensor]:
    """Random weights under the key names of OpenGVLab/VideoMAEv2-Base's model.safetensors."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"patch_embed.proj.weight": (64, 3, 2, 8, 8), "patch_embed.proj.bias": (64,),
    "fc_norm.weight": (64,),
              "fc_norm.bias": (64,)}  # fmt: skip
    for block in range(V2["depth"]):
        for name, shape in {
            "norm1.weight": (64,), "norm1.bias": (64,), "attn.q_bias": (64,), "attn.v_bias": (64,),
            "attn.qkv.weight": (192, 64),
            "attn.proj.weight": (64, 64), "attn.proj.bias": (64,), "norm2.weight": (64,), "norm2.bias": (64,),
            "mlp.fc1.weight": (128, 64), "mlp.fc1.bias": (128,), "mlp.fc2.weight": (64, 128),
            "mlp.fc2.bias": (64,),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}"] = shape
    return {f"model.{key}": 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def v2_repository(folder: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
    """A folder as the hub's repository: config.json of a type that transformers does not know, and one
    safetensors file."""
    folder.mkdir()
    code = {"AutoModel": "modeling_videomaev2.VideoMAEv2", "AutoConfig": "modeling_config.VideoMAEv2Config"}
    config = {"model_type": "VideoMAEv2_Base", "auto_map": code, "model_config": V2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_videomaev2.py").write_text("raise AssertionError('foreign code was run')")
    save_file(v2_state() if state is None else state, folder / "model.safetensors")
    return folder


def v2_tokens(state: dict[str, torch.Tensor], clip: torch.Tensor) -> torch.Tensor:
    """VideoMAE v2's tokens after its last block, written from its description: `B 3 T H W`, normalised -> `B
    N C`."""
    state = {key.removeprefix("model."): value for key, value in state.items()}

    def norm(x, name):
        return F.layer_norm(x, (64,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    full = lambda x, name: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    x = F.conv3d(clip, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(2, 8, 8))
    x = x.flatten(2).transpose(1, 2)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] / 10000 ** (
        2 * (torch.arange(64) // 2) / 64
    )
    x = x + torch.where(torch.arange(64) % 2 == 0, angle.sin(), angle.cos()).float()
    for block in (f"blocks.{index}" for index in range(V2["depth"])):
        q_bias, v_bias = state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"]
        joint = norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T
        q, k, v = (
            (joint + torch.cat([q_bias, torch.zeros(64), v_bias]))
            .unflatten(2, (3, V2["num_heads"], 16))
            .unbind(2)
        )
        weight = torch.einsum("bihc,bjhc->bhij", q, k).div(4).softmax(-1)
        x = x + full(torch.einsum("bhij,bjhc->bihc", weight, v).flatten(2), f"{block}.attn.proj")
        x = x + full(F.gelu(full(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return x


def test_the_hub_repository_of_videomae_v2_gives_its_last_blocks_raw_tokens(tmp_path):
    """From the repository and from its file alone; no foreign code runs, no norm of the pooled head is
    applied."""
    video = torch.rand(2, 3, 8, 32, 32)
    loaded = load_teacher("videomae", v2_repository(tmp_path / "VideoMAEv2-Base"))
    tokens = loaded.features(video).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, v2_tokens(v2_state(), imagenet(video)), rtol=1e-4, atol=1e-4)
    alone = load_teacher("videomae", tmp_path / "VideoMAEv2-Base" / "model.safetensors").model.state_dict()
    for key, value in loaded.model.state_dict().items():
        torch.testing.assert_close(alone[key], value)


def test_the_papers_teacher_is_the_default():
    assert DEFAULT_SOURCE["videomae"] == "OpenGVLab/VideoMAEv2-Base"


def with_changes(state: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    """The weights without one key, with one more, or with one of another size."""
    key = next(key for key in state if key.endswith(".bias") and "norm" not in key)
    if change == "missing":
        return {name: value for name, value in state.items() if name != key}
    return (
        state
        | {"missing": {}, "unknown": {"blocks.0.gamma": torch.ones(3)}, "size": {key: torch.ones(3)}}[change]
    )


@pytest.mark.parametrize("change", ["missing", "unknown", "size"])
@pytest.mark.parametrize(
    "kind", ["v2 repository", "v2 file", "v1 folder", "v-jepa folder", "our file", "raft file"]
)
def test_weights_that_are_not_the_whole_encoder_are_refused_in_one_sentence(kind, change, tmp_path):
    """A network whose missing part is random looks at nothing: every way in refuses it."""
    path = tmp_path / "model.safetensors"
    if kind == "v2 repository":
        load = lambda: load_teacher(  # noqa: E731
            "videomae", v2_repository(tmp_path / "hub", with_changes(v2_state(), change))
        )
    elif kind == "v2 file":
        save_file(with_changes(v2_state(), change), path)
        load = lambda: load_teacher("videomae", path)  # noqa: E731
    elif kind == "raft file":
        save_file(with_changes(raft_small(weights=None).state_dict(), change), path)
        load = lambda: load_raft(path)  # noqa: E731
    elif kind == "our file":
        videomae().save(path, {}, torch.float32)
        info = read_info(path)
        save_weights(path, with_changes(load_file(path), change), info)
        load = lambda: load_teacher("toy_videomae", path)  # noqa: E731
    else:
        teacher, name = (videomae(), "videomae") if kind == "v1 folder" else (vjepa(), "vjepa2")
        teacher.model.save_pretrained(tmp_path)
        save_file(with_changes(load_file(path), change), path, metadata={"format": "pt"})
        load = lambda: load_teacher(name, tmp_path)  # noqa: E731
    with pytest.raises(
        TeacherError, match="hold the unknown 'blocks.0.gamma'" if change == "unknown" else "lack '"
    ) as caught:
        load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whole", [VideoMAEForPreTraining, VideoMAEForVideoClassification])
def test_a_decoder_or_a_head_beside_the_encoder_is_left_out(whole, tmp_path):
    torch.manual_seed(1)
    model = whole(
        VideoMAEConfig(
            **MAE, decoder_num_hidden_layers=1, use_mean_pooling=whole is VideoMAEForVideoClassification
        )
    )
    model.save_pretrained(tmp_path)
    for key, value in load_teacher("videomae", tmp_path).model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[f"videomae.{key}"])


@pytest.mark.parametrize(("height", "width"), [(480, 720), (480, 832), (544, 960), (720, 1280), (350, 500)])
def test_a_patch_of_a_large_clip_is_48_pixels_of_it(height, width):
    """Changing the pixels of one 48 x 48 square far from its border changes that patch's input and no
    other's."""
    teacher = VideoMAETeacher(VideoMAEModel(VideoMAEConfig(hidden_size=8, num_hidden_layers=0,
    num_attention_heads=1,
                                                           intermediate_size=8)), "tiny")  # fmt: skip
    rows, columns = height // 48, width // 48
    assert teacher.size(height, width) == (16 * rows, 16 * columns)
    assert teacher.covered(height, width) == (48 * rows, 48 * columns)
    video = torch.rand(1, 3, 2, height, width)
    before, y, x = teacher.resized(video), rows - 1, columns - 1
    video[..., 48 * y + 8 : 48 * y + 40, 48 * x + 8 : 48 * x + 40] = 0
    changed = (teacher.resized(video) != before).flatten(0, 2).any(dim=0)
    assert changed.nonzero().amin(0).tolist() >= [16 * y, 16 * x]
    patches = changed.unflatten(0, (rows, 16)).unflatten(2, (columns, 16)).any(3).any(1)
    assert patches.nonzero().tolist() == [[y, x]]


def test_positions_are_resized_as_videorepa_resizes_them():
    """Cubic in space, then linear in time: 8 x 14 x 14 becomes 24 x 10 x 15. A grid of the table's own size
    is left alone."""
    table = torch.randn(1, 4, 8, 14, 14)
    found = positions(table, (24, 10, 15))
    space = torch.stack(
        [F.interpolate(table[:, :, f], (10, 15), mode="bicubic")[0] for f in range(8)], dim=1
    )[None]
    expected = torch.zeros(1, 4, 24, 10, 15)
    for frame in range(24):
        place = min(max((frame + 0.5) / 3 - 0.5, 0), 7)
        low, share = min(int(place), 6), place - min(int(place), 6)
        expected[:, :, frame] = (1 - share) * space[:, :, low] + share * space[:, :, low + 1]
    torch.testing.assert_close(found, expected)
    assert positions(table, (8, 14, 14)) is table


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


@pytest.mark.parametrize(
    ("frames", "window", "context", "step"),
    [(32, 16, 0.5, 4), (40, 24, 0.25, 4), (22, 16, 0.25, 4), (32, 32, 0.5, 8)],
)
def test_every_change_of_a_clip_is_forecast_once_from_what_came_before(frames, window, context, step):
    """Against a loop: each change comes from the first window that holds it; every step after the first
    context has one."""
    teacher, video = vjepa(), torch.rand(1, 3, frames, 32, 32)
    found, first = teacher.expected_changes(video, step, window, context)
    steps, width = frames // step, window // step
    seen = round(width * context)
    assert (found.shape[2], first) == (steps - seen - 1, seen)
    starts = [*range(0, steps - width, width - seen - 1), steps - width]
    for change in range(found.shape[2]):
        left = first + change  # from this step to the next
        start = next(start for start in starts if start + width > left + 1)
        part = video[:, :, start * step : (start + width) * step]
        forecast = teacher.predicted(part, seen * step // 2)
        at = [
            forecast[:, :, (s - start - seen) * step // 2 : (s - start - seen + 1) * step // 2].mean(2)
            for s in (left, left + 1)
        ]
        torch.testing.assert_close(found[:, :, change], at[1] - at[0])
    other = video.clone()
    other[:, :, (steps - 1) * step :] = torch.rand_like(other[:, :, (steps - 1) * step :])
    torch.testing.assert_close(
        teacher.expected_changes(other, step, window, context)[0], found
    )  # the end is never seen


@pytest.mark.parametrize(
    ("frames", "window", "step", "message"),
    [
        (
            32,
            16,
            8,
            "forecasts 1 steps of 8 frames after 1 seen ones; a change needs two, as a window of 24 would",
        ),
        (12, 16, 4, "a clip of 12 frames is shorter than one window of 16"),
        (32, 16, 3, "steps of 3 frames are no multiple of the world model's tubelets of 2"),
    ],
)
def test_windows_that_forecast_no_change_are_refused(frames, window, step, message):
    with pytest.raises(TeacherError, match=message):
        vjepa().expected_changes(torch.rand(1, 3, frames, 32, 32), step, window)


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
    """The file sizes; and V-JEPA 2 expects of a clip rather its own future than that of another clip of the
    same world."""
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
        with pytest.raises(
            TeacherError, match=f"{name}.safetensors does not hold torchvision's RAFT weights"
        ):
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
        file, folder = (
            load_teacher("toy_videomae", tmp_path / "toy_videomae.safetensors"),
            tmp_path / "folder",
        )
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
        with pytest.raises(
            TeacherError, match="holds no safetensors weights; pickles can run code"
        ) as caught:
            load_teacher(name, tmp_path)
        assert "\n" not in str(caught.value)
    model.save_pretrained(tmp_path)
    video = torch.rand(1, 3, 8, 32, 32)
    expected = (videomae() if name == "videomae" else vjepa()).features(video)
    torch.testing.assert_close(load_teacher(name, tmp_path).features(video), expected)


def test_features_are_found_by_content_and_damage_is_noticed(tmp_path):
    cache = FeatureCache(tmp_path)
    assert not cache.has("a", "clip")
    cache.write(
        "a", "clip", {"features": torch.full((2, 3), 1 / 3), "exact_saliency": torch.full((2,), 1 / 3)}
    )
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
    [("dino", None, "choose one "
                    "of"), ("videomae", "/nowhere/at/all", "could not be "
                                                           "loaded"), ("videomae", "x.pth", "pickle"),
     ("toy_videomae", "no.safetensors", "does not exist")],
)  # fmt: skip
def test_teachers_that_cannot_be_loaded_are_one_sentence(name, source, message):
    with pytest.raises(TeacherError, match=message) as caught:
        load_teacher(name, source)
    assert "\n" not in str(caught.value)
