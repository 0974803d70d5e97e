"""Image encoders, video encoders that are shown one frame at a time, and critics by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from latent_physics.encoders import TeacherError, load_teacher
from latent_physics.encoders.base import imagenet
from latent_physics.encoders.critics import critic_through, load_critic
from latent_physics.encoders.images import FrameByFrame, ImageEncoder
from latent_physics.methods.critics import CausalSurprise, CriticError, MotionConsistency, TrajectoryGeometry

WEIGHTS = Path(__file__).resolve().parents[2] / "toyworld" / "weights"
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def dinov2() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **SIZES))


def dinov3() -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(
        DINOv3ViTConfig(image_size=32, patch_size=16, intermediate_size=64, num_register_tokens=4, **SIZES)
    )


@pytest.mark.parametrize(("build", "patch"), [(dinov2, 14), (dinov3, 16)])
def test_features_are_the_patch_tokens_of_each_frame(tmp_path: Path, build: Any, patch: int) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    encoder = ImageEncoder.from_source(str(tmp_path))
    clip = torch.rand(2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    height, width = encoder.size(64, 96)
    assert (height % patch, width % patch, min(height, width)) == (0, 0, 224)
    found = encoder.features(clip)
    assert found.shape == (2, 32, 3, height // patch, width // patch)
    frame = imagenet(encoder.resized(clip))[1:2, :, 2]
    with torch.no_grad():
        tokens = model.eval()(pixel_values=frame).last_hidden_state[:, -found[0, 0, 0].numel() :]
    torch.testing.assert_close(found[1, :, 2].flatten(1).T, tokens[0], rtol=1e-4, atol=1e-5)


def test_frames_do_not_see_one_another(tmp_path: Path) -> None:
    dinov2().save_pretrained(tmp_path)
    clip = torch.rand(1, 3, 4, 28, 28)
    changed = clip.clone()
    changed[:, :, 2] = 0
    for encoder in (ImageEncoder.from_source(str(tmp_path)), FrameByFrame(load_teacher("toy_videomae"))):
        before, after = (
            encoder.features(torch.nn.functional.interpolate(one, (4, 64, 64))) for one in (clip, changed)
        )
        torch.testing.assert_close(before[:, :, [0, 1, 3]], after[:, :, [0, 1, 3]])
        assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_still_clip_has_equal_features_at_every_frame() -> None:
    """Inside a whole clip a video encoder's features drift even where nothing moves; shown frame by frame
    they do not."""
    still = torch.rand(1, 3, 1, 64, 64).expand(-1, -1, 8, -1, -1)
    for name in ("toy_videomae", "toy_vjepa2"):
        teacher = load_teacher(name)
        found = FrameByFrame(teacher).features(still)
        assert found.shape[2] == 8
        torch.testing.assert_close(found, found[:, :, :1].expand_as(found), rtol=1e-4, atol=1e-5)
        whole = teacher.features(still)
        assert (whole - whole[:, :, :1]).abs().max() > 0.01, "otherwise frame by frame would be needless"


def test_what_is_no_image_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"no config.json that fits"):
        ImageEncoder.from_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(TeacherError, match="is a vit model; image encoders are dinov2"):
        ImageEncoder.from_source(str(tmp_path))
    with pytest.raises(TeacherError, match="names no image encoder"):
        ImageEncoder.build({"model_type": "gpt2"})
    dinov2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((WEIGHTS / "toy_text.safetensors").read_bytes())
    with pytest.raises(TeacherError, match="weights"):
        ImageEncoder.from_source(str(tmp_path))


def test_critics_are_found_by_name() -> None:
    assert isinstance(load_critic("surprise", "toy_vjepa2", stride=4), CausalSurprise)
    assert isinstance(load_critic("geometry", "toy_videomae"), TrajectoryGeometry)
    motion = load_critic("motion", WEIGHTS / "toy_predictor_order2.safetensors")
    assert isinstance(motion, MotionConsistency)
    assert isinstance(critic_through(load_teacher("toy_vjepa2")), CausalSurprise)
    assert isinstance(critic_through(load_teacher("toy_videomae")), TrajectoryGeometry)


def test_critics_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        CriticError, match="there is no critic 'taste'; choose one of surprise, geometry, motion"
    ):
        load_critic("taste", "toy_vjepa2")
    with pytest.raises(CriticError, match="needs a world model that predicts"):
        load_critic("surprise", "toy_videomae")
    with pytest.raises(ValueError, match=r"toy_vae.safetensors"):
        load_critic("motion", WEIGHTS / "toy_vae.safetensors")
    with pytest.raises(CriticError, match="does not look through an encoder"):
        critic_through(load_teacher("toy_vjepa2"), "motion")


def test_nothing_before_the_last_frame_changes_with_it() -> None:
    """The causal test on the real architecture: V-JEPA 2 attends in both directions and must not see what
    it is to expect."""
    clip = torch.rand(1, 3, 32, 64, 64, generator=torch.Generator().manual_seed(2))
    changed = clip.clone()
    changed[:, :, -1] = 1 - changed[:, :, -1]
    critic = load_critic("surprise", "toy_vjepa2", stride=8, contexts=(4, 8))
    before, after = critic.judge(clip, 16.0), critic.judge(changed, 16.0)
    assert torch.equal(before.curve[:, :-1], after.curve[:, :-1])
    assert not torch.equal(before.curve[:, -1], after.curve[:, -1])
    model = critic.model
    assert torch.equal(model.predicted(clip[:, :, -16:], 4), model.predicted(changed[:, :, -16:], 4))
