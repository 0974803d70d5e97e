"""How the toy models are trained: the VAE's two changes that no loader may notice, resuming, two
processes."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_physics.encoders.base import digest_of
from latent_physics.methods.weights import WeightsError, read_info
from latent_physics.tests.training.finetune.two_processes import finished
from latent_physics.toyworld.canvas import LATENT, SIZE
from latent_physics.toyworld.data import mixture
from latent_physics.toyworld.text import ToyTextEncoder
from latent_physics.toyworld.worlds import WORLDS
from latent_physics.training.backbones.load import TOY_WEIGHTS, load_backbone
from latent_physics.training.backbones.wan import LATENTS_MEAN, LATENTS_STD
from latent_physics.training.commands.toyworld import train
from latent_physics.training.console import TrainingError
from latent_physics.training.tasks.toy import base
from latent_physics.training.tasks.toy import vae as vae_stage
from latent_physics.training.tasks.toy.base import StageTask, attention, run_stage, train_base, use_bf16
from latent_physics.training.tasks.toy.mixture import (
    DIFFICULT,
    TURN,
    DrawnLatents,
    KeptLatents,
    encode_mixture,
)
from latent_physics.training.tasks.toy.settings import ToyWorldConfig
from latent_physics.training.tasks.toy.ship import LOG_ROWS, export, ship_logs
from latent_physics.training.tasks.toy.text import train_text
from latent_physics.training.tasks.toy.vae import (
    build_vae,
    decode_unclamped,
    fit_latent_scale,
    moving_square,
    train_vae,
    vae_loss,
    zero_past_taps,
)
from safetensors.torch import load_file
from torch import nn

CLIPS = torch.rand(2, 3, 9, 16, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def vae():
    return build_vae(ToyWorldConfig()).eval().requires_grad_(False)


def test_any_wan_vae_reads_the_weights_of_one_that_sees_the_present_frame_only(vae):
    zero_past_taps(vae)
    stock = build_vae(ToyWorldConfig(seed=5)).eval()
    stock.load_state_dict(vae.state_dict())
    with torch.no_grad():
        latents = vae.encode(CLIPS * 2 - 1).latent_dist.mean
        assert torch.allclose(stock.encode(CLIPS * 2 - 1).latent_dist.mean, latents, atol=1e-5)
        assert torch.allclose(stock.decode(latents).sample, vae.decode(latents).sample, atol=1e-4)


def test_the_unclamped_picture_is_the_decoders_before_its_clamp(vae):
    with torch.no_grad():
        latents = vae.encode(CLIPS * 2 - 1).latent_dist.mean * 20  # far enough to be clamped somewhere
        free = decode_unclamped(vae, latents)
        assert free.abs().max() > 1
        assert torch.allclose(free.clamp(-1, 1), vae.decode(latents).sample, atol=1e-5)


def test_the_latent_gets_wans_statistics_and_no_picture_changes(vae):
    with torch.no_grad():
        before = decode_unclamped(vae, vae.encode(CLIPS * 2 - 1).latent_dist.mean)
        fit_latent_scale(vae, CLIPS)
        latents = vae.encode(CLIPS * 2 - 1).latent_dist.mean
        assert torch.allclose(latents.mean((0, 2, 3, 4)), torch.tensor(LATENTS_MEAN), atol=1e-4)
        assert torch.allclose(latents.std((0, 2, 3, 4)), torch.tensor(LATENTS_STD), rtol=1e-4)
        assert torch.allclose(decode_unclamped(vae, latents), before, atol=1e-3 * float(before.abs().max()))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)

    def forward(self, points):
        return {"error": (self.line(points) - points.sum(1, keepdim=True)).square().mean()}


class LineTask(StageTask):
    """A line fitted to points that the step's generator draws."""

    def __init__(self, name):
        super().__init__(name, Line(), ("error",))

    def placed(self, accelerator):
        self.mine = slice(accelerator.process_index, None, accelerator.num_processes)

    def draw(self, number, generator):
        return (torch.randn(8, 3, generator=generator)[self.mine],)


def fit(out: Path, steps: int, name="line", learning_rate=1e-2, **settings) -> nn.Module:
    task = LineTask(name)
    run_stage(
        task, ToyWorldConfig(out=out, save_every=1000, **settings), steps=steps, learning_rate=learning_rate
    )
    return task.module.line


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"learning_rate": 0.5}, "learning_rate 0.01 -> 0.5"),
        ({"layers": 8, "ema": 0.9}, "ema 0.998 -> 0.9, layers 6 -> 8"),
        ({"wrong": 0.25}, "wrong 0.8 -> 0.25"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(tmp_path, changed, words):
    fit(tmp_path, 2, name="base")
    with pytest.raises(TrainingError, match=rf"base holds a run with other settings \({words}\): "):
        fit(tmp_path, 4, name="base", **changed)
    # A setting of another stage, how a step is computed and the number of steps are free.
    fit(tmp_path, 4, name="base", vae_width=16, threads=1, bf16="no")
    assert read_info(tmp_path / "base" / "checkpoint.safetensors").recipe["progress"]["step"] == 4


def test_every_setting_that_decides_about_continuing_exists():
    from latent_physics.training.tasks.toy.settings import SHAPED_BY

    config = ToyWorldConfig()
    assert all(hasattr(config, name) for names in SHAPED_BY.values() for name in names)


def test_latents_are_encoded_once_and_only_reused_for_the_same_mixture(tmp_path, vae):
    config = ToyWorldConfig(out=tmp_path, clips=2)
    latents, prompts = encode_mixture(config, vae)
    assert latents.shape == (2, 16, *LATENT)
    assert len(prompts) == 2
    path = tmp_path / "latents" / "000000.safetensors"
    written = path.stat().st_mtime_ns
    assert torch.equal(encode_mixture(config, vae)[0], latents)
    assert path.stat().st_mtime_ns == written
    longer, texts = encode_mixture(dataclasses.replace(config, clips=3), vae)
    assert longer.shape[0] == len(texts) == 3
    with pytest.raises(TrainingError, match=r"holds latents of another mixture \(wrong 0.8 -> 0.25\)"):
        encode_mixture(dataclasses.replace(config, clips=3, wrong=0.25), vae)


def test_clips_drawn_without_end_are_the_same_for_the_same_step_and_new_for_another(vae):
    source = DrawnLatents(ToyWorldConfig(clips=0), vae)
    generator = torch.Generator().manual_seed(0)
    latents, prompts = source.draw(3, 2, generator)
    again, texts = source.draw(3, 2, generator)
    assert latents.shape == (2, 16, *LATENT)
    assert torch.equal(latents, again)
    assert prompts == texts
    later, others = source.draw(4, 2, generator)
    assert not torch.equal(latents, later)
    assert prompts != others


def test_difficult_worlds_are_shown_three_times_as_often():
    names = list(WORLDS) * 3
    kept = KeptLatents(torch.arange(len(names)).float().view(-1, 1, 1, 1, 1), names)
    shown, prompts = kept.draw(0, 16000, torch.Generator().manual_seed(0))
    assert [names[int(index)] for index in shown.flatten()] == prompts
    for name in WORLDS:
        expected = 3 / 16 if name in DIFFICULT else 1 / 16
        assert prompts.count(name) / len(prompts) == pytest.approx(expected, rel=0.1)
        assert TURN.count(name) / len(TURN) == expected


def test_every_world_gets_its_turn_over_the_steps_of_a_small_batch():
    drawn = [mixture(2, step, 0.0, first=2 * step)[2] for step in range(4)]
    assert [name for part in drawn for name in part] == list(WORLDS)


def test_a_square_holds_what_moves_and_lies_on_the_latents_places():
    rng, world = np.random.default_rng(0), WORLDS["rigid_body"]
    for _ in range(20):
        frames = world.render(world.draw(rng))[:5]
        rows, columns = moving_square(frames, world.background, 32, rng)
        assert rows.stop - rows.start == columns.stop - columns.start == 32
        assert rows.start % 8 == columns.start % 8 == 0
        assert 0 <= rows.start <= SIZE - 32
        assert 0 <= columns.start <= SIZE - 32
        assert (np.abs(frames - world.background)[:, :, rows, columns] > 0.04).any()
    still = np.broadcast_to(world.background, frames.shape)
    moving_square(still, world.background, 32, rng)  # where nothing moves there is a square all the same


def test_noise_on_the_latent_is_a_share_of_its_own_deviation(vae):
    """Against the decoder's input, computed apart; a latent ten times as large gets noise ten times as
    large."""
    seen = []
    handle = vae.post_quant_conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    clips, share = CLIPS[:, :, :5], torch.tensor([0.0, 0.5])
    noise = torch.randn(2, 16, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    posterior = vae.encode(clips * 2 - 1).latent_dist
    spread = posterior.mean.std((0, 2, 3, 4))
    vae_loss(vae, clips, clips[:, :, :1], noise, share)
    handle.remove()
    assert torch.allclose(seen[0][0], posterior.mean[0] + posterior.std[0] * noise[0], atol=1e-5)
    variance = posterior.var[1] + (0.5 * spread.view(-1, 1, 1, 1)) ** 2
    assert torch.allclose(seen[0][1], posterior.mean[1] + variance.sqrt() * noise[1], atol=1e-5)


def test_bfloat16_is_used_where_it_was_asked_for_and_else_where_the_processor_has_it(monkeypatch):
    assert use_bf16(ToyWorldConfig(bf16="yes"))
    assert not use_bf16(ToyWorldConfig(bf16="no"))
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False)
        assert use_bf16(ToyWorldConfig()) is has
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not use_bf16(ToyWorldConfig())


def test_logs_ship_with_the_weights_thinned_and_with_their_last_row(tmp_path):
    config = ToyWorldConfig(out=tmp_path / "run", export=tmp_path / "shipped")
    (config.out / "base").mkdir(parents=True)
    rows = [f"{step},0.5" for step in range(1, 1202)]
    (config.out / "base" / "log.csv").write_text("\n".join(["step,loss", *rows]) + "\n")
    ship_logs(config)
    assert [path.name for path in (config.export / "logs").iterdir()] == ["toy_base.csv"]
    shipped = (config.export / "logs" / "toy_base.csv").read_text().splitlines()
    assert shipped[0] == "step,loss"
    assert shipped[-1] == "1201,0.5"
    assert 300 < len(shipped) <= LOG_ROWS + 1


def in_files(part: str) -> dict[str, torch.Tensor]:
    """Weights of the toy world's VAE or transformer, under diffusers' names."""
    return getattr(load_backbone("toy", parts=(part,)), part).state_dict()


def at_step_one(monkeypatch, stage, train) -> dict[str, torch.Tensor]:
    """Weights of a stage's module as the loop is given them, by the names in the module."""
    seen = {}
    monkeypatch.setattr(stage, "run_stage", lambda task, *_, **__: seen.update(task.module.state_dict()))
    train()
    return {name: value.clone() for name, value in seen.items()}


def test_a_run_begins_with_exactly_the_weights_of_a_folder(tmp_path, monkeypatch):
    config = ToyWorldConfig(out=tmp_path, begin=TOY_WEIGHTS)
    text = train_text(config)
    shipped = ToyTextEncoder.load(TOY_WEIGHTS / "toy_text.safetensors").state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in text.state_dict().items())
    assert not (tmp_path / "text").exists()  # it is taken, not trained
    given = at_step_one(monkeypatch, vae_stage, lambda: train_vae(config))
    assert_weights(given, "vae", in_files("vae"))
    given = at_step_one(monkeypatch, base, lambda: train_base(config, text, clips=None))
    assert_weights(given, "dit", in_files("dit"))
    fresh = at_step_one(monkeypatch, base, lambda: train_base(ToyWorldConfig(out=tmp_path), text, clips=None))
    assert not all(torch.equal(value, given[name]) for name, value in fresh.items())


def assert_weights(given: dict[str, torch.Tensor], part: str, wanted: dict[str, torch.Tensor]) -> None:
    """A student's weights are those of the part that it teaches, and nothing else is learned."""
    assert set(given) == {f"{part}.{name}" for name in wanted}
    differing = [name for name, value in wanted.items() if not torch.equal(given[f"{part}.{name}"], value)]
    assert not differing


@pytest.mark.parametrize("settings", [{"layers": 5}, {"layers": 7}, {"width": 256}])
def test_a_transformer_of_another_size_is_no_beginning(tmp_path, settings):
    config = ToyWorldConfig(out=tmp_path, begin=TOY_WEIGHTS, **settings)
    with pytest.raises(TrainingError, match=r"toy_dit\.safetensors has another width or depth than the set"):
        train_base(config, ToyTextEncoder.load(TOY_WEIGHTS / "toy_text.safetensors"), clips=None)
    assert not (tmp_path / "base").exists()


def test_a_folder_without_the_files_is_no_beginning(tmp_path):
    config = ToyWorldConfig(out=tmp_path / "run", begin=tmp_path)
    text = ToyTextEncoder.load(TOY_WEIGHTS / "toy_text.safetensors")
    with pytest.raises(TrainingError, match=r"toy_vae\.safetensors does not exist\.$"):
        train_vae(config)
    with pytest.raises(TrainingError, match=r"toy_dit\.safetensors does not exist\.$"):
        train_base(config, text, clips=None)
    with pytest.raises(WeightsError, match=r"toy_text\.safetensors"):
        train_text(config)


def test_what_cannot_be_gone_on_from_is_said_before_anything_is_trained(tmp_path):
    config = ToyWorldConfig(out=tmp_path, begin=TOY_WEIGHTS, layers=5)
    with pytest.raises(TrainingError, match="another width or depth"):
        train(config)
    assert not list(tmp_path.iterdir())


def test_files_that_ship_say_what_they_began_from_and_no_folder(tmp_path, vae):
    config = ToyWorldConfig(out=tmp_path / "run", export=tmp_path / "shipped", begin=TOY_WEIGHTS)
    dit = load_backbone("toy", parts=("dit",)).dit
    export(config, ToyTextEncoder.load(TOY_WEIGHTS / "toy_text.safetensors"), vae, dit)
    for part in ("vae", "dit", "text"):
        recipe = read_info(config.export / f"toy_{part}.safetensors").recipe
        assert recipe["begin"] == digest_of(
            TOY_WEIGHTS / f"toy_{name}.safetensors" for name in ("vae", "dit", "text")
        )
        assert str(tmp_path) not in str(recipe)
        assert str(TOY_WEIGHTS) not in str(recipe)


def test_the_attention_that_trains_on_a_cpu_is_the_one_that_samples():
    """The plain product against the kernel that torch takes by itself, on one clip of the toy world."""
    dit = load_backbone("toy", parts=("dit",)).dit
    noise = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 16, *LATENT, generator=noise)
    words = torch.randn(1, 24, 4096, generator=noise)
    sigma = torch.tensor([600.0])
    with torch.no_grad():
        usual = dit(latent, sigma, words, return_dict=False)[0]
        with attention(torch.device("cpu")):
            trained = dit(latent, sigma, words, return_dict=False)[0]
    assert usual.abs().max() > 0.1
    assert (usual - trained).abs().max() < 1e-5 * max(1.0, float(usual.abs().max()))


TWO = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from latent_physics.tests.training.test_toyworld import fit
from latent_physics.training.loop import processes

accelerator = processes.start(device="cpu")
print(f"process {accelerator.process_index} of {accelerator.num_processes}\\n", end="", flush=True)  # in one piece: both print
save_file(fit(Path(sys.argv[1]), 20).state_dict(), Path(sys.argv[1]) / f"line{accelerator.process_index}.safetensors")
"""


def test_two_processes_with_half_a_batch_each_end_where_one_ends(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command += [str(tmp_path / "two.py"), str(tmp_path)]
    done = finished(command, environment)
    assert done.returncode == 0, done.stderr
    assert {"process 0 of 2", "process 1 of 2"} <= set(done.stdout.splitlines())
    one = fit(tmp_path / "one", 20)
    for index in range(2):
        other = load_file(tmp_path / f"line{index}.safetensors")
        assert torch.allclose(other["weight"], one.weight, atol=1e-6)
