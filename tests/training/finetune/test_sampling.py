"""The training-side sampler: schedules, steps, corrections, classifier-free guidance, clips on disk."""

from __future__ import annotations

import pytest
import torch
from latent_physics.methods.step import SamplingStep
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.load import load_backbone
from latent_physics.training.backbones.sample import sample, schedule
from latent_physics.training.console import TrainingError
from latent_physics.training.tasks.finetune import FinetuneConfig, check
from latent_physics.training.tasks.preview import Samples, read_sizes


class Known:
    """A model that knows the clean latent: whatever it is shown, its output points there."""

    def __init__(self, backbone, clean):
        self.backbone, self.clean = backbone, clean

    def __call__(self, x, t, tokens, mask=None):
        if self.backbone.prediction == "flow":
            return (x - self.clean) / t.view(-1, 1, 1, 1, 1)
        alpha_bar = self.backbone.signal_power(t).view(-1, 1, 1, 1, 1)
        return (alpha_bar.sqrt() * x - self.clean) / (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("family", ["toy", "cogvideox"])
def test_a_model_that_knows_the_answer_gives_it(family):
    backbone = tiny_run.backbone(family)
    clean = torch.randn(2, 16, 3, 4, 4)
    backbone.predict = Known(backbone, clean)
    tokens = torch.randn(2, backbone.text_length, tiny_run.WIDTH)
    seen: list[SamplingStep] = []

    class Watch:
        def correct(self, x0, step):
            seen.append(step)
            torch.testing.assert_close(x0, clean, rtol=1e-3, atol=1e-3)
            return x0

    out = sample(
        backbone,
        tokens,
        torch.ones(2, backbone.text_length, dtype=torch.bool),
        (3, 4, 4),
        steps=5,
        corrections=[Watch()],
    )
    torch.testing.assert_close(out, clean, rtol=1e-3, atol=1e-3)
    assert [step.index for step in seen] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(seen[0].cond, tokens.mean(1))
    assert seen[0].gain[0].item() == pytest.approx(1.0, abs=1e-3)
    assert (seen[-1].gain < seen[0].gain).all()


def test_ddim_is_the_published_schedulers():
    """Same timesteps and steps as diffusers' CogVideoXDDIMScheduler with trailing spacing."""
    from diffusers import CogVideoXDDIMScheduler

    backbone = tiny_run.backbone("cogvideox")
    theirs = CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", snr_shift_scale=3.0,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    theirs.set_timesteps(10)
    assert schedule(backbone, 10)[:-1].tolist() == theirs.timesteps.tolist()
    tokens = torch.randn(1, 226, tiny_run.WIDTH)
    ours = sample(backbone, tokens, torch.ones(1, 226, dtype=torch.bool), (3, 4, 4), steps=10, seed=3)
    x = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(3))[None]
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(backbone.predict(x, t[None], tokens), t, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_rows_do_not_depend_on_their_batch_and_guidance_is_the_usual_formula():
    backbone = tiny_run.backbone()
    tokens, mask = torch.randn(3, 8, tiny_run.WIDTH), torch.ones(3, 8, dtype=torch.bool)
    together = sample(backbone, tokens, mask, (2, 4, 4), steps=3, seed=5)
    alone = sample(backbone, tokens[2:], mask[2:], (2, 4, 4), steps=3, seed=7)
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-4)
    null = (torch.zeros(1, 8, tiny_run.WIDTH), mask[:1])
    one = sample(backbone, tokens[:1], mask[:1], (2, 4, 4), steps=1, cfg=3.0, null=null, seed=5)
    x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(5))[None]
    t = torch.tensor([1.0])
    with torch.no_grad():
        conditional, empty = backbone.predict(x, t, tokens[:1]), backbone.predict(x, t, null[0])
    torch.testing.assert_close(one, x - (empty + 3 * (conditional - empty)), rtol=1e-4, atol=1e-4)


def test_samples_are_written_as_clips(tmp_path):
    import imageio.v3 as imageio

    files = tiny.native_files(tmp_path)
    backbone = tiny_run.backbone()
    vae = load_backbone("toy", files, parts=("vae",)).vae
    tokens, mask = torch.randn(1, 8, tiny_run.WIDTH), torch.ones(1, 8, dtype=torch.bool)
    samples = Samples(
        prompts=["a ball"],
        tokens=tokens,
        mask=mask,
        null=(tokens * 0, mask),
        vae=vae,
        shape=(2, 4, 4),
        fps=8,
        steps=2,
    )
    samples.write(backbone, 12, None)
    assert not (tmp_path / "samples").exists()
    samples.write(backbone, 12, tmp_path)
    assert imageio.imread(tmp_path / "samples" / "000012-0.mp4").shape == (5, 32, 32, 3)
    assert backbone.vae is None


def test_every_prompt_is_sampled_at_every_size(tmp_path):
    import imageio.v3 as imageio

    backbone = tiny_run.backbone()
    vae = load_backbone("toy", tiny.native_files(tmp_path), parts=("vae",)).vae
    tokens, mask = torch.randn(2, 8, tiny_run.WIDTH), torch.ones(2, 8, dtype=torch.bool)
    sizes = read_sizes(["32x48x5", "48X32x9"], "toy")
    samples = Samples(
        prompts=["a", "b"], tokens=tokens, mask=mask, null=(tokens[:1] * 0, mask[:1]), vae=vae,
        shape=(2, 4, 4), fps=8, steps=1, sizes=sizes,
    )  # fmt: skip
    samples.write(backbone, 3, tmp_path)
    found = {path.name: imageio.imread(path).shape[:3] for path in (tmp_path / "samples").iterdir()}
    assert found == {
        "000003-0-32x48x5.mp4": (5, 48, 32), "000003-1-32x48x5.mp4": (5, 48, 32),
        "000003-0-48x32x9.mp4": (9, 32, 48), "000003-1-48x32x9.mp4": (9, 32, 48),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("640x368", "it must be WIDTHxHEIGHTxFRAMES"),
        ("640x368xmany", "it must be WIDTHxHEIGHTxFRAMES"),
        ("640x360x49", "'640x360x49': height is 360; it must be a multiple of 16"),
        ("640x368x50", "'640x368x50': frames is 50; it must be"),
    ],
)
def test_a_size_that_cannot_be_sampled_is_told_before_anything_is_loaded(text, says, tmp_path):
    with pytest.raises(TrainingError, match=says):
        check(FinetuneConfig(data=tmp_path, sample_sizes=["640x368x49", text]))
