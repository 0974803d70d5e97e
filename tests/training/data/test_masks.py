"""Masks beside clips: found, cut as the clip is, kept at the latent's resolution, and what they do to the
loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from latent_physics.methods.weights import load_weights, save_weights
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.first_frame import FirstFrame
from latent_physics.training.commands.cache import main
from latent_physics.training.console import TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import KIND, DatasetError, read_clip, read_clip_info, write_clip
from latent_physics.training.data.format import CacheConfig
from latent_physics.training.data.masks import latent_mask
from latent_physics.training.data.sources import gather, masks_of
from latent_physics.training.data.videos import VideoError, windows
from latent_physics.training.tasks.denoise import DenoisingTask
from latent_physics.training.tasks.finetune import FinetuneConfig
from latent_physics.training.tasks.finetune import check as check_finetune
from latent_physics.training.tasks.noise import NoiseConfig, Times
from PIL import Image

LENGTH, SIDE = 12, 16


def film(path, frames):
    pictures = [Image.fromarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=100, lossless=True, minimize_size=False
    )
    return path


def noise(seed, height=SIDE, width=SIDE, length=LENGTH):
    return np.random.default_rng(seed).integers(0, 256, (length, height, width, 3)).astype(np.uint8)


def moving(height=SIDE, width=SIDE, length=LENGTH):
    """A white column, `T H W 3`: frame i has it at i."""
    frames = np.zeros((length, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[:, number] = 255
    return frames


@pytest.fixture
def clips(tmp_path):
    for seed, name in enumerate(("a", "deep/b")):
        film(tmp_path / "clips" / f"{name}.webp", noise(seed))
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    film(tmp_path / "masks" / "a.webp", moving())
    half = np.zeros((SIDE, SIDE, 3), np.uint8)
    half[: SIDE // 2] = 255
    Image.fromarray(half).save(tmp_path / "masks" / "deep" / "b.png")
    return tmp_path


def cache(tmp_path, *arguments, masks="masks"):
    settings = ["--videos", tmp_path / "clips", "--out", tmp_path / "out", "--frames", 9, "--width", SIDE]
    settings += ["--height", SIDE, "--backbone", "toy", "--device", "cpu", "--tokens", "--store", "float32"]
    return main([*map(str, [*settings, *(["--masks", tmp_path / masks] if masks else []), *arguments])])


def cached(tmp_path):
    """Clips by the number of their film's name and their first frame."""
    found = {path.name[0]: read_clip(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))}
    return [found[name] for name in sorted(found)]


# --- reading ------------------------------------------------------------------------------------------------


def test_a_film_and_a_picture_are_kept_at_the_latents_resolution(clips):
    assert cache(clips) == 0
    a, b = cached(clips)
    assert a.mask.shape == a.latent.shape[1:] == (3, 2, 2)
    pixels = moving()[:9, :, :, 0] / 255
    groups = [pixels[:1], pixels[1:5], pixels[5:9]]  # the first frame alone, then 4 by 4
    expected = np.stack([group.reshape(-1, 2, 8, 2, 8).mean(axis=(0, 2, 4)) for group in groups])
    assert np.allclose(a.mask.numpy(), expected, atol=1e-6)
    assert torch.equal(b.mask, torch.tensor([1.0, 0])[None, :, None].expand(3, 2, 2))


def test_a_mask_is_cut_as_its_clip_is(tmp_path):
    """Thinned with it, cropped with it, in the same stretch."""
    clip = film(tmp_path / "a.webp", noise(0, 16, 32))
    mask = film(tmp_path / "m.webp", moving(16, 32))
    found = list(
        windows(clip, frames=3, width=16, height=16, fps=5, limit=0, stride=2, mask=mask)
    )  # every other of 10 frames a second
    columns = [window.mask[:, 0].argmax(axis=1).tolist() for window in found]
    assert [window.start_frame for window in found] == [0, 2]
    assert [int(window.mask.max(axis=(1, 2))[0]) for window in found] == [0, 0]  # columns 0 and 4 are cut off
    assert columns == [[0, 0, 0], [0, 0, 0]]
    wide = next(windows(clip, frames=9, width=32, height=16, mask=mask))
    assert np.array_equal(wide.mask, moving(16, 32)[:9, :, :, 0])
    middle = next(windows(clip, frames=12, width=16, height=16, mask=mask))
    assert [column.tolist() for column in np.nonzero(middle.mask[:, 0])] == [[8, 9, 10, 11], [0, 1, 2, 3]]


@pytest.mark.parametrize(("frames", "latent"), [(9, 3), (1, 1), (17, 3), (22, 6), (10, 5)])
def test_frames_are_shared_by_latent_frames(frames, latent):
    mask = np.random.default_rng(0).integers(0, 256, (frames, 8, 8)).astype(np.uint8)
    found = latent_mask(mask, (16, latent, 2, 2))
    assert found.shape == (latent, 2, 2)
    spatial = (mask / 255).reshape(frames, 2, 4, 2, 4).mean(axis=(2, 4))
    causal = latent > 1 and (frames - 1) % (latent - 1) == 0
    if causal:
        assert np.allclose(found[0], spatial[0], atol=1e-6)
        each = (frames - 1) // (latent - 1)
        assert np.allclose(found[1], spatial[1 : 1 + each].mean(axis=0), atol=1e-6)
        assert np.allclose(found[-1], spatial[-each:].mean(axis=0), atol=1e-6)
    elif frames % latent == 0:
        assert np.allclose(
            found[1 % latent], spatial.reshape(latent, -1, 2, 2).mean(1)[1 % latent], atol=1e-6
        )


def test_masks_that_do_not_fit_their_clip_leave_it_out(clips, capsys):
    film(clips / "masks" / "a.webp", moving(length=5))
    Image.fromarray(np.zeros((SIDE, 2 * SIDE, 3), np.uint8)).save(clips / "masks" / "deep" / "b.png")
    assert cache(clips) == 1
    said = capsys.readouterr()
    assert "a.webp has 5 frames, fewer than a.webp, whose mask it is" in said.out
    assert "b.webp is 16x16 and its mask 32x16; their proportions must be the same" in said.out
    (clips / "masks" / "deep" / "b.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"b\.png cannot be decoded"):
        next(windows(clips / "clips/deep/b.webp", frames=9, width=16, height=16,
                     mask=clips / "masks/deep/b.png"))  # fmt: skip


# --- finding ------------------------------------------------------------------------------------------------


def test_a_clip_without_a_mask_is_one_sentence_before_anything_is_loaded(clips, monkeypatch, capsys):
    from latent_physics.training.data import cache as module

    monkeypatch.setattr(module, "embed_captions", None)
    (clips / "masks" / "deep" / "b.png").unlink()
    assert cache(clips) == 1
    said = capsys.readouterr().err
    assert "which holds none for b.webp; put a film or picture deep/b.* there" in said
    film(clips / "clips" / "c.webp", noise(4))
    assert cache(clips, "--check") == 1
    assert "none for c.webp (and none for 1 more of 3 clips)" in capsys.readouterr().err
    assert cache(clips, masks="nowhere") == 1
    assert "nowhere, which is no folder" in capsys.readouterr().err
    (clips / "clips" / "c.webp").unlink()
    (clips / "masks" / "a.png").write_bytes(b"x")
    (clips / "masks" / "deep" / "b.png").write_bytes(b"x")
    assert cache(clips) == 1
    assert "masks holds a.png and a.webp, both for a.webp; keep one" in capsys.readouterr().err


def test_masks_may_lie_among_the_clips_and_are_none_of_them(clips):
    (clips / "masks").rename(clips / "clips" / "masks")
    config = CacheConfig(out=clips / "out", videos=[clips / "clips"], masks=clips / "clips" / "masks")
    found = gather(config)
    assert [clip.name for clip in found.clips] == ["a.webp", "b.webp"]
    assert not found.left_out
    assert [mask.name for mask in masks_of(found.clips, config).values()] == ["a.webp", "b.png"]
    shot = clips / "clips" / "shot"
    shot.mkdir()
    (clips / "clips" / "masks" / "shot").mkdir()
    for number in range(3):
        for folder in (shot, clips / "clips" / "masks" / "shot"):
            Image.fromarray(noise(number)[0]).save(folder / f"{number}.png")
    assert masks_of([shot], config) == {shot: clips / "clips" / "masks" / "shot"}


def test_a_changed_mask_is_cached_again_and_nothing_else_is(clips):
    assert cache(clips, masks=None) == 0
    keys = [clip.info.key for clip in cached(clips)]
    assert all(clip.mask is None for clip in cached(clips))
    assert cache(clips) == 0
    masked = [clip.info.key for clip in cached(clips)]
    assert not set(keys) & set(masked)
    stamps = {path: path.stat().st_mtime_ns for path in (clips / "out").glob("*.safetensors")}
    film(clips / "masks" / "a.webp", 255 - moving())
    assert cache(clips) == 0
    again = {path: path.stat().st_mtime_ns for path in stamps}
    assert [path.name[0] for path in stamps if again[path] != stamps[path]] == ["a"]
    assert cache(clips, masks=None) == 0
    assert [clip.info.key for clip in cached(clips)] == keys


def test_a_file_whose_mask_is_not_its_latents_is_refused(clips):
    assert cache(clips) == 0
    path = next((clips / "out").glob("a*.safetensors"))
    tensors, info = load_weights(path, KIND)
    save_weights(path, tensors | {"mask": tensors["mask"][:, :1]}, info)
    with pytest.raises(DatasetError, match=r"holds a mask \(3, 1, 2\) of a latent \(16, 3, 2, 2\)"):
        read_clip(path)


# --- the loss -----------------------------------------------------------------------------------------------


def masked_folder(folder, masks):
    """tiny_run's clips with a mask each, None for none."""
    folder.mkdir(exist_ok=True)
    tiny_run.clips(folder, ((3, 4, 4),) * len(masks))
    for path, mask in zip(sorted(folder.glob("*.safetensors")), masks):
        clip = read_clip(path)
        write_clip(path, clip.latent, clip.cond, clip.info, clip.latent_space, clip.tokens, mask=mask)
    return folder


def task_of(folder, family="toy", **noise):
    clips = TrainingClips(folder, batch=2, seed=0)
    return DenoisingTask(tiny_run.backbone(family), clips, noise=NoiseConfig(**noise))


def expected_loss(task, batch, t, eps, least, huber=0.0):
    """sum w e / sum w over every element, one clip after the other, in float64 and by hand."""
    backbone = task.backbone
    noised = backbone.noise(batch.latent, t, eps=eps)
    with torch.no_grad():
        out = backbone.predict(noised.noisy, t, batch.tokens, batch.mask).double()
    difference = (out - noised.target.double()).abs()
    losses = []
    for row in range(len(batch.names)):
        total = weight = 0.0
        for channel, frame, y, x in np.ndindex(*batch.latent.shape[1:]):
            w = least + (1 - least) * float(batch.loss_mask[row, 0, frame, y, x])
            d = float(difference[row, channel, frame, y, x])
            total += w * (d * d if not huber or d < huber else huber * (2 * d - huber))
            weight += w
        losses.append(total / weight)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("least", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("huber", [0.0, 0.5])
def test_the_loss_is_the_weighted_mean(tmp_path, least, huber):
    generator = torch.Generator().manual_seed(0)
    folder = masked_folder(tmp_path / "c", [torch.rand(3, 4, 4, generator=generator) for _ in range(4)])
    task = task_of(folder, mask_min_value=least, huber=huber)
    batch, t, eps = task.draw(0, torch.Generator().manual_seed(1))
    assert batch.loss_mask.shape == (2, 1, 3, 4, 4)
    found = task.module(batch, t, eps)["denoise"].detach()
    assert float(found) == pytest.approx(expected_loss(task, batch, t, eps, least, huber), rel=1e-5)
    plain = task_of(folder, huber=huber)
    plain.module.load_state_dict(task.module.state_dict())
    unweighted = float(plain.module(batch, t, eps)["denoise"].detach())
    assert (unweighted == pytest.approx(float(found), rel=1e-6)) == (least == 1.0), "off by default"


def test_black_does_not_count_and_gets_no_gradient(tmp_path):
    mask = torch.zeros(3, 4, 4)
    mask[:, :2] = 1
    task = task_of(masked_folder(tmp_path / "c", [mask] * 2), mask_min_value=0.0)
    batch, _, _ = task.draw(0, torch.Generator().manual_seed(1))
    out = torch.randn_like(batch.latent).requires_grad_()
    counted = task.times.mask_weight(batch.loss_mask)
    task.times.error(out, batch.latent, counted).sum().backward()
    assert out.grad[:, :, :, 2:].abs().max() == 0
    assert out.grad[:, :, :, :2].abs().min() > 0
    dark = task.times.error(out, batch.latent, torch.zeros_like(counted))
    assert torch.equal(dark, torch.zeros(2))  # not a number would end the run


def test_a_given_first_frame_stays_out_of_the_masked_loss():
    wan = tiny_run.backbone("wan-5b")
    generator = torch.Generator().manual_seed(0)
    latent, eps, out = (torch.randn(2, 48, 3, 4, 4, generator=generator) for _ in range(3))
    mask = torch.rand(2, 1, 3, 4, 4, generator=generator)
    given = FirstFrame(given=torch.tensor([True, False]))
    noised = wan.noise(latent, torch.tensor([0.5, 0.5]), eps=eps).showing(latent, given)
    found = noised.error(out, Times(wan, NoiseConfig(mask_min_value=0.0)).error, mask)
    square = (out - noised.target).square()
    first = (mask[0, :, 1:] * square[0, :, 1:]).sum() / (48 * mask[0, :, 1:].sum())
    second = (mask[1] * square[1]).sum() / (48 * mask[1].sum())
    torch.testing.assert_close(found, torch.stack([first, second]))


def test_clips_without_masks_are_one_sentence(tmp_path):
    folder = masked_folder(tmp_path / "c", [torch.ones(3, 4, 4), None, None, torch.ones(3, 4, 4)])
    with pytest.raises(TrainingError, match=r"clip1\.safetensors was cached without a mask \(2 of 4 clips"):
        task_of(folder, mask_min_value=0.1)
    assert TrainingClips(folder, batch=2, seed=0).read([0, 1]).loss_mask is None
    assert read_clip_info(folder / "clip1.safetensors") is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"videos": ["v"], "noise": {"mask_min_value": 0.1}}, "there is no mask; give their folder with"),
        ({"videos": ["v"], "masks": "m"}, "mask_min_value is left out, without which masks have no effect"),
        ({"data": "d", "masks": "m"}, "which is for caching, and the clips of d are cached"),
        ({"data": "d", "noise": {"mask_min_value": 1.5}}, "mask_min_value is 1.5; it must be at most 1"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_read(settings, sentence):
    from pathlib import Path

    settings = dict(settings)
    for name in ("data", "masks"):
        settings[name] = Path(settings[name]) if name in settings else None
    config = FinetuneConfig(**{**settings, "noise": NoiseConfig(**settings.get("noise", {}))})
    with pytest.raises(TrainingError, match=sentence):
        check_finetune(config)
