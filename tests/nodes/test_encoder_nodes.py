"""Motion Saliency Mask, Load Video Encoder, Tap Block and Correspondence Map."""

from __future__ import annotations

import math

import pytest
import torch
from latent_physics.nodes.host.encoders import FOLDER, encoder_names
from latent_physics.nodes.views.points import MARK, laid_over, saliency_mask

pytest.importorskip("comfy", reason="needs ComfyUI: run dev.py once, or set COMFYUI_PATH")

import folder_paths
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_physics.methods.relational import correspondence
from latent_physics.nodes import alignment
from latent_physics.nodes.host import files, tap

pytestmark = pytest.mark.comfy

SIZES = {
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tubelet_size": 2,
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder for ComfyUI; previews go to a temporary folder too."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    for name in (files.FOLDER, FOLDER):
        folder_paths.folder_names_and_paths.pop(name, None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(files, "SHIPPED_FOLDER", tmp_path / "shipped")
    (tmp_path / "models" / FOLDER).mkdir(parents=True)
    return tmp_path / "models"


def execute(node, **arguments):
    with torch.inference_mode():
        return node.execute(**arguments).args


def videomae(head=False):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEModel

    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = VideoMAEConfig(
        image_size=32, num_frames=4, intermediate_size=32, use_mean_pooling=head, **decoder, **SIZES
    )
    return (VideoMAEForPreTraining if head else VideoMAEModel)(config)


def vjepa():
    from transformers import VJEPA2Config, VJEPA2Model

    return VJEPA2Model(
        VJEPA2Config(
            crop_size=32, frames_per_clip=4, mlp_ratio=1, pred_hidden_size=32, pred_num_hidden_layers=1,
            pred_num_attention_heads=2, **SIZES,
        )
    )  # fmt: skip


def clip(frames=8, size=32):
    """A bright square that moves to the right over noise."""
    images = 0.2 * torch.rand(frames, size, size, 3, generator=torch.Generator().manual_seed(4))
    for number in range(frames):
        images[number, 8:16, 2 * number : 2 * number + 8] = 1.0
    return images


# -- saliency ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    frames=st.integers(4, 9),
    height=st.integers(8, 21),
    width=st.integers(8, 21),
    keep=st.floats(0.01, 1),
    patch=st.integers(1, 8),
)
def test_saliency_keeps_a_fraction_of_every_frame(frames, height, width, keep, patch):
    images = torch.rand(frames, height, width, 3)
    mask = saliency_mask(images, keep, patch, 2)
    assert mask.shape == (frames, height, width)
    places = (height // patch) * (width // patch)
    assert (mask.sum(dim=(1, 2)) == math.ceil(round(keep * places, 9)) * patch**2).all()
    whole = mask[:, : height // patch * patch, : width // patch * patch]
    assert whole.sum() == mask.sum()
    tiles = whole.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3)
    assert (tiles.amin(dim=3) == tiles.amax(dim=3)).all()


def test_saliency_finds_what_moves(models):
    images = torch.zeros(6, 32, 32, 3)
    images[2:, 8:16, 16:24] = 1.0
    mask, shown = execute(alignment.MotionSaliencyMask, images=images, keep=1 / 16, patch=8)
    expected = torch.zeros(32, 32)
    expected[8:16, 16:24] = 1.0
    assert all(torch.equal(mask[number], expected) for number in range(4))
    assert torch.equal(shown[3], images[3])


def test_saliency_needs_time():
    with pytest.raises(ValueError, match="tubelets"):
        saliency_mask(torch.rand(3, 32, 32, 3), 0.2, 8, 2)


# -- correspondence ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(grid=st.tuples(*[st.integers(1, 4)] * 3), temperature=st.floats(0.05, 2), data=st.data())
def test_correspondence_is_a_softmax_of_cosines(grid, temperature, data):
    query = tuple(data.draw(st.integers(0, size - 1)) for size in grid)
    features = torch.randn(
        math.prod(grid), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    found = correspondence(features, grid, query, temperature)
    volume = features.view(*grid, 5)
    for frame in range(grid[0]):
        weights = {}
        for row in range(grid[1]):
            for column in range(grid[2]):
                one, other = volume[query], volume[frame, row, column]
                weights[row, column] = math.exp(float(one @ other / one.norm() / other.norm()) / temperature)
        for (row, column), weight in weights.items():
            assert float(found[frame, row, column]) == pytest.approx(weight / sum(weights.values()), abs=1e-5)
        assert float(found[frame].sum()) == pytest.approx(1, abs=1e-5)


def test_correspondence_refuses_what_does_not_fit():
    features = torch.randn(8, 4)
    with pytest.raises(ValueError, match="8 tokens"):
        correspondence(features, (2, 2, 3), (0, 0, 0))
    with pytest.raises(ValueError, match="outside"):
        correspondence(features, (2, 2, 2), (0, 2, 0))
    with pytest.raises(ValueError, match="temperature is 0"):
        correspondence(features, (2, 2, 2), (0, 0, 0), 0)


# -- encoders ------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(models):
    """Encoders as users have them: folders of transformers (one with its training head), and this pack's own
    files."""
    from latent_physics.encoders import VideoMAETeacher, VJEPATeacher

    torch.manual_seed(0)
    own, other = models / files.FOLDER, models / FOLDER
    videomae(head=True).save_pretrained(other / "videomae-base")
    vjepa().save_pretrained(other / "vjepa")
    VideoMAETeacher(videomae(), "test").save(own / "toy_videomae.safetensors", {})
    VJEPATeacher(vjepa(), "test").save(own / "toy_vjepa2.safetensors", {})
    return models


def test_every_kind_of_encoder_loads_and_shows_a_map(shelf):
    names = encoder_names()
    assert sorted(names) == [
        "toy_videomae.safetensors",
        "toy_vjepa2.safetensors",
        "video_encoders/videomae-base/model.safetensors",
        "video_encoders/vjepa/model.safetensors",
    ]
    images = clip(frames=9)
    for name in names:
        assert alignment.LoadVideoEncoder.validate_inputs(name=name) is True
        (encoder,) = execute(alignment.LoadVideoEncoder, name=name)
        overlay, maps = execute(
            alignment.CorrespondenceMap,
            images=images,
            x=9,
            y=30,
            frame=3,
            temperature=0.1,
            opacity=0.5,
            encoder=encoder,
        )
        assert overlay.shape == images.shape
        assert maps.shape == (4, 4, 4)
        assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(4))
        assert tuple((maps[1] == maps[1].max()).nonzero()[0].tolist()) == (3, 1)
        features = encoder.teacher.features(images.movedim(-1, 0)[None])[0]
        assert torch.allclose(
            maps, correspondence(features.flatten(1).T, (4, 4, 4), (1, 3, 1), 0.1), atol=1e-6
        )
        assert overlay[3, 30, 9].tolist() == pytest.approx(list(MARK))


def test_files_that_are_no_encoders_are_refused(shelf):
    folder = shelf / FOLDER
    for name in ("other", "vit"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(
            (folder / "vjepa" / "model.safetensors").read_bytes()
        )
    (folder / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "vit" / "config.json").write_bytes((folder / "videomae-base" / "config.json").read_bytes())
    (folder / "alone.safetensors").write_bytes((folder / "vjepa" / "model.safetensors").read_bytes())
    for name, sentence in {
        "other/model.safetensors": "is a gpt2 model",
        "vit/model.safetensors": "weights of .* lack '",
        "alone.safetensors": "not a VideoMAE v2",
        "gone.safetensors": "is not in models/video_encoders",
        "../latent_physics/toy_videomae.safetensors": "is not in models/video_encoders",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            execute(alignment.LoadVideoEncoder, name=f"video_encoders/{name}")
    assert "not in models" in alignment.LoadVideoEncoder.validate_inputs(name="gone.safetensors")


def test_map_leaves_out_what_belongs_to_no_patch():
    """Pixels beyond the last whole patch stay as they are; the heat lies on the part that the encoder saw."""
    images, maps = torch.rand(2, 20, 30, 3), torch.full((1, 2, 3), 0.5)
    shown = laid_over(images, maps, [0, 0], 1.0, (16, 24))
    assert torch.equal(shown[:, 16:], images[:, 16:])
    assert torch.equal(shown[:, :, 24:], images[:, :, 24:])
    assert torch.allclose(shown[:, :16, :24], shown[:1, :1, :1].expand(2, 16, 24, 3))


# -- tapped blocks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "grid"), [("wan", (5, 4, 4)), ("cogvideox", (5, 4, 4)), ("hunyuan", (5, 4, 4))]
)
def test_tap_hears_the_positive_prompt_and_changes_nothing(
    models, make_model, sample, conditioning, name, grid
):
    model, prompts = make_model(name), (conditioning(1), conditioning(2))
    (tapped,) = execute(alignment.TapBlock, model=model, block=1, step=2)
    latent = sample(tapped, *prompts, shape=(2, 16, 5, 8, 8))
    assert torch.equal(latent, sample(model, *prompts, shape=(2, 16, 5, 8, 8)))
    found = tap.tapped(tapped)
    assert found.grid == grid
    assert found.frames == 5
    assert torch.allclose(found.tokens.float().norm(dim=1), torch.ones(math.prod(grid)), atol=1e-2)
    # The same first clip alone, without CFG: batch and negative prompt must not have been heard.
    (alone,) = execute(alignment.TapBlock, model=model, block=1, step=1)
    (many,) = execute(alignment.TapBlock, model=model, block=1, step=1)
    sample(alone, *prompts, cfg=1.0)
    sample(many, *prompts)
    assert torch.allclose(tap.tapped(alone).tokens.float(), tap.tapped(many).tokens.float(), atol=5e-3)
    images = torch.rand(2 * 17, 64, 64, 3)
    overlay, maps = execute(
        alignment.CorrespondenceMap, images=images, x=63, y=0, frame=16, temperature=0.1, opacity=0.7,
        model=tapped,
        latent={"samples": latent},
    )  # fmt: skip
    assert overlay.shape == (17, 64, 64, 3)
    assert torch.allclose(maps, correspondence(found.tokens, grid, (4, 0, 3), 0.1))


def test_tap_of_a_later_step_or_block_is_another(models, wan, sample, conditioning):
    heard = []
    for block, step in ((1, 1), (2, 1), (1, 4), (1, 100)):
        (tapped,) = execute(alignment.TapBlock, model=wan, block=block, step=step)
        sample(tapped, conditioning(1), conditioning(2))
        heard.append(tap.tapped(tapped).tokens)
    assert not torch.equal(heard[0], heard[1])
    assert not torch.equal(heard[0], heard[2])
    assert torch.equal(heard[2], heard[3])  # a sampler of four steps has no hundredth
    assert not any(block._forward_hooks for block in wan.model.diffusion_model.blocks)


def test_map_says_what_is_missing(models, wan, sample, conditioning):
    point = {
        "images": torch.rand(17, 64, 64, 3),
        "x": 0,
        "y": 0,
        "frame": 0,
        "temperature": 0.1,
        "opacity": 0.5,
    }
    latent = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    for block in (0, 3):
        with pytest.raises(ValueError, match=f"there is no block {block}: this model's blocks are 1 to 2"):
            execute(alignment.TapBlock, model=wan, block=block, step=1)
    with pytest.raises(ValueError, match="either an encoder or a model"):
        execute(alignment.CorrespondenceMap, **point)
    with pytest.raises(
        ValueError, match="lies outside a video of 17 frames"
    ):  # told before the encoder runs: this one cannot
        execute(alignment.CorrespondenceMap, encoder=object(), **{**point, "frame": 17})
    with pytest.raises(ValueError, match="no latent"):
        execute(alignment.CorrespondenceMap, model=wan, **point)
    with pytest.raises(ValueError, match="without Tap Block"):
        execute(alignment.CorrespondenceMap, model=wan, latent=latent, **point)
    (tapped,) = execute(alignment.TapBlock, model=wan, block=1, step=1)
    with pytest.raises(ValueError, match="no sampler ran"):
        execute(alignment.CorrespondenceMap, model=tapped, latent=latent, **point)
    sample(tapped, conditioning(1), conditioning(2))
    with pytest.raises(ValueError, match="5 latent frames and this latent has 4"):
        execute(
            alignment.CorrespondenceMap,
            model=tapped,
            latent={"samples": torch.zeros(1, 16, 4, 8, 8)},
            **point,
        )
    with pytest.raises(ValueError, match="lies outside a video of 17 frames, 64x64"):
        execute(alignment.CorrespondenceMap, model=tapped, latent=latent, **{**point, "y": 64})
