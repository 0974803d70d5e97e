import csv
import dataclasses
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from latent_physics.encoders.raft import RaftFlow
from latent_physics.methods.labels.taxonomy import label_vector
from latent_physics.methods.pila import CATEGORIES, load_adapter
from latent_physics.methods.weights import WeightsInfo, load_weights, save_weights
from latent_physics.tests.training.finetune.two_processes import finished
from latent_physics.tests.training.tiny_pila import QUICK, SMALL, FrozenField, begin, clips, flat, run
from latent_physics.toyworld import mixture
from latent_physics.training.commands.pila import PilaCommand, _findings, _flow, budget, main
from latent_physics.training.console import StopRequest, TrainingError
from latent_physics.training.data.clip import ClipInfo, DatasetError, read_clip, write_clip
from latent_physics.training.data.flow import cached_flow, raft_flow
from latent_physics.training.loop import loop, shown
from latent_physics.training.loop.checkpoint import CHECKPOINT, LOG
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.optim import rate_factor
from latent_physics.training.tasks.pila.columns import EXPORT, RESIDUALS
from latent_physics.training.tasks.pila.data import Batch, cached_clips, labels_of, toy_clips, toy_labels
from latent_physics.training.tasks.pila.films import write_films
from latent_physics.training.tasks.pila.losses import SIGMA_COLUMNS, variation
from latent_physics.training.tasks.pila.settings import RECIPES
from latent_physics.training.tasks.pila.stages import draw_sigma, parts_of, stages_of
from latent_physics.training.tasks.pila.task import PilaRun, loop_config
from safetensors.torch import load_file


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(shown, "draw_curves", lambda *arguments: None)


def test_the_whole_run_trains_logs_and_exports(tmp_path):
    training = run(tmp_path)
    stages = []
    training.run(on_step=lambda report: stages.append(report.step))
    assert training.finished
    assert len(stages) == training.planned_steps == 3 * 2 + 6 + 4
    rows = read_log(tmp_path / LOG)
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert all("observable" in row for row in rows[:12])
    assert any(name.split("/")[0] in CATEGORIES for name in rows[-1])
    assert "B psi/wave_propagation" in rows[11]
    assert "val_gain" in rows[-1]
    adapter, info = load_adapter(tmp_path / EXPORT)
    assert adapter.config == dataclasses.replace(SMALL)
    assert info.latent_space == "toy"
    assert info.recipe["steps"] == 16
    assert (tmp_path / RESIDUALS).stat().st_size > 1000
    header = next(csv.reader((tmp_path / LOG).open()))
    assert {"route Optical", "Fluid/momentum", "off_label", "Rigid Body + Collision"} <= set(header)
    coupled = rows[-4:]
    assert {row["recall"] for row in coupled} == {1.0}  # one label a clip, and four experts
    assert any(name in row for row in coupled for name in SIGMA_COLUMNS)
    assert all(row["Rigid Body + Collision"] <= 1 for row in coupled)
    assert {"dead_slots", "unused_experts", "method"} <= set(info.recipe)


@pytest.mark.parametrize("stop_at", [1, 6, 7, 14])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, undrawn, stop_at):
    whole = run()
    whole.run()

    request = StopRequest()
    first = run(tmp_path)
    first.run(request, lambda report: setattr(request, "asked", report.step >= stop_at))
    assert first.total_steps == stop_at
    second = run(tmp_path)
    assert second.total_steps == stop_at
    second.run()
    for (name, a), b in zip(whole.adapter.state_dict().items(), second.adapter.state_dict().values()):
        assert torch.equal(a, b), name
    assert [row["step"] for row in read_log(tmp_path / LOG)] == list(range(1, 17))


TWO = """
import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from latent_physics.tests.training import tiny_pila
from latent_physics.training.loop import loop, shown

torch.set_num_threads(1)
shown.draw_curves = lambda *arguments: None
out = Path(sys.argv[1])
training = tiny_pila.run(out, dataclasses.replace(tiny_pila.QUICK, batch=1))


def keep_second(report):
    if report.step == 2 and training.loop.main:
        save_file(training.adapter.state_dict(), out / "second")


training.run(on_step=keep_second)
assert training.accelerator.num_processes == 2, training.accelerator.num_processes
assert type(training.loop.stepper.module).__name__ == "DistributedDataParallel"
print(f"process {training.accelerator.process_index}\\n", end="", flush=True)
"""


def test_two_processes_end_where_one_with_their_clips_ends(tmp_path, undrawn):
    """Every stage: two processes with a clip each, started by the repository's config file, against one with
    two clips."""
    (tmp_path / "two.py").write_text(TWO)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    recipes = Path(loop.__file__).parents[1] / "recipes"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipes / "ddp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", port, str(tmp_path / "two.py")]
    launch.append(str(tmp_path / "two"))
    done = finished(launch, os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert {"process 0", "process 1"} <= set(done.stdout.splitlines())
    one, states = run(tmp_path / "one"), []
    start = flat(one.adapter.state_dict())
    one.run(on_step=lambda report: states.append(flat(one.adapter.state_dict())))
    second = flat(load_file(tmp_path / "two" / "second"))
    assert (second - states[1]).norm() < 2e-3 * (states[1] - start).norm()
    assert (second - states[1]).abs().max() < 1e-4  # of at most 2e-3 that a weight moves
    rows = [read_log(tmp_path / name / LOG) for name in ("one", "two")]
    for first, other in zip(*rows, strict=True):
        assert first.keys() == other.keys()
        # AdamW turns rounding noise into a step where a gradient is all but zero, so late rows agree less.
        early = first["step"] <= 12
        assert first["loss"] == pytest.approx(other["loss"], rel=1e-4 if early else 2e-3), first["step"]
        assert first["gradient"] == pytest.approx(other["gradient"], rel=1e-4 if early else 2e-2), first[
            "step"
        ]
    assert rows[0][-1]["samples"] == 2 * rows[1][-1]["samples"] > 0
    assert run(tmp_path / "two").finished  # one process with batch 2 is the same run; with batch 1 it is not:
    with pytest.raises(TrainingError, match="2 clips a step, this one has 1"):
        run(tmp_path / "two", dataclasses.replace(QUICK, batch=1))


def test_a_run_with_other_settings_is_not_continued(tmp_path, undrawn):
    training = run(tmp_path)
    request = StopRequest()
    training.run(request, lambda report: setattr(request, "asked", True))
    with pytest.raises(TrainingError, match=r"learning_rate 0\.001 -> 0\.002"):
        run(tmp_path, dataclasses.replace(QUICK, learning_rate=0.002))


def test_a_longer_coupling_stage_goes_on_from_a_finished_run(tmp_path, undrawn):
    run(tmp_path).run()
    run(
        tmp_path
    ).run()  # the command again, when nothing is left to do: it must not spoil the optimiser that was saved
    longer = run(tmp_path, dataclasses.replace(QUICK, coupling_steps=6))
    assert longer.total_steps == 16
    longer.run()
    assert longer.total_steps == 18


@pytest.mark.parametrize("stage", ["A2", "B", "C"])
def test_only_the_parts_of_a_stage_learn(stage):
    config = dataclasses.replace(QUICK, coupling_steps=6)
    training = run(config=config)
    first = begin(training, stage)
    before = {name: value.clone() for name, value in training.adapter.state_dict().items()}
    training.run(on_step=lambda report: report.step < first + 2)
    changed = {
        name for name, value in training.adapter.state_dict().items() if not torch.equal(value, before[name])
    }
    allowed = {
        "A2": ("encoder.", "level.", "afe.scaffold.", "afe.u_head."),
        "B": ("afe.p_rho_head.", "afe.heads."),
        "C": ("level.", "condition.", "router.", "decoder.", "experts.", "afe.p_rho_head.", "afe.heads."),
    }[stage]
    assert changed
    assert all(name.startswith(allowed) for name in changed), changed
    if stage == "C":  # after the freeze the encoder follows at 0.3 of the rate, the velocity head never
        training.run(on_step=lambda report: report.step < first + 5)
        moved = {
            name
            for name, value in training.adapter.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert any(name.startswith("encoder.") for name in moved)
        assert not any(name.startswith("afe.u_head.") for name in moved)
        assert [group["lr"] for group in training.loop.stepper.optimizer.param_groups] == [
            1e-3,
            pytest.approx(3e-4),
        ]


def test_the_coupling_stage_can_be_tied_to_the_flow():
    """Its log always says how far velocity is from the flow and how much fields vary; weights add the anchors
    to the loss."""
    rows = []
    for anchor, spread in ((0.0, 0.0), (0.5, 0.0), (0.0, 2.0)):
        training = run(config=dataclasses.replace(QUICK, coupling_anchor=anchor, coupling_spread=spread))
        begin(training, "C")
        training.run(on_step=lambda report: False)
        rows.append(training.log.rows[-1])
    free, tied, spread = rows
    assert free["observable"] > 0
    assert tied["loss"] - free["loss"] == pytest.approx(0.5 * free["observable"], rel=1e-4)
    assert spread["loss"] > free["loss"]
    assert tied["gradient"] != free["gradient"]
    assert {f"std {name}" for name in ("u", "rho", "T", "psi")} <= free.keys()
    still = {"T": torch.full((2, 1, 4, 5, 5), 3.0), "u": torch.zeros(2, 2, 4, 5, 5)}
    still["u"][:, 0] = 7.0  # a pan: channels differ, but nothing varies
    assert variation(still) == {"std T": 0.0, "std u": 0.0}


def test_the_learning_rate_is_constant_and_ends_in_a_cosine():
    config = loop_config(dataclasses.replace(QUICK, cooldown=0.2))
    assert [rate_factor(config, step, step / 1000) for step in (0, 799, 800)] == [1.0, 1.0, 1.0]
    assert rate_factor(config, 900, 0.9) == pytest.approx(0.5)
    assert rate_factor(config, 999, 0.999) < 1e-3
    constant = loop_config(dataclasses.replace(QUICK, cooldown=0.0))
    assert {rate_factor(constant, step, step / 1000) for step in range(1000)} == {1.0}  # as the paper has it
    training = run(config=dataclasses.replace(QUICK, coupling_steps=6, cooldown=0.5))
    rates = []
    training.run(
        on_step=lambda report: rates.append(
            [group["lr"] for group in training.loop.stepper.optimizer.param_groups]
        )
    )
    assert rates[-1][0] == pytest.approx(
        0.25 * 1e-3
    )  # the last of six steps: two thirds of the way down the cosine
    assert rates[-1][1] == pytest.approx(0.3 * rates[-1][0])
    assert {rate for pair in rates[:-2] for rate in pair} == {1e-3, 3e-4}


def test_slots_without_life_and_experts_without_clips_are_reported_at_export(tmp_path, undrawn):
    training = run(tmp_path, dataclasses.replace(QUICK, every=1, learning_rate=1e-12))
    begin(training, "C")
    torch.nn.init.zeros_(training.adapter.afe.heads["T"][-1].weight)  # temperature is a constant
    torch.nn.init.normal_(training.adapter.afe.heads["psi"][-1].weight)
    training.run(on_step=lambda report: False)
    recipe = load_adapter(tmp_path / EXPORT)[1].recipe
    assert "T" in recipe["dead_slots"]
    assert "psi" not in recipe["dead_slots"]
    assert recipe["unused_experts"]  # two held-out clips cannot run all eight
    assert set(recipe["unused_experts"]) <= set(CATEGORIES) - {
        "Rigid Body",
        "Elastic",
    }  # the labels of clips 0 and 1


def test_training_in_bfloat16_keeps_weights_and_fields_in_float32():
    training = run(config=dataclasses.replace(QUICK, bf16=True))
    seen = []
    training.adapter.afe.register_forward_hook(lambda module, inputs, output: seen.extend(output[0].values()))
    training.adapter.router.register_forward_hook(lambda module, inputs, output: seen.append(output.logits))
    training.run()
    assert {value.dtype for value in seen} == {torch.float32}
    assert {p.dtype for p in training.adapter.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in training.adapter.parameters())


def test_the_correction_learns_to_remove_error():
    quick = {
        "observable_steps": 1,
        "recovery_steps": 5,
        "coupling_steps": 60,
        "every": 60,
        "shift": 0.3,
        "max_grad_norm": 10.0,
    }
    training = run(config=dataclasses.replace(QUICK, learning_rate=1e-2, seed=1, **quick))
    training.run()
    assert training.val_gain > 0.05


def test_stages_and_noise_ranges_are_the_papers():
    config, adapter = RECIPES["wan"]
    stages = stages_of(config)
    assert [(s.name, s.steps) for s in stages] == [
        ("A1", 3000),
        ("A2", 3000),
        ("A3", 3000),
        ("B", 2600),
        ("C", 18000),
    ]
    for stage, highest in zip(stages, [0.357, 0.625, 0.833, 1.0, 1.0]):
        drawn = draw_sigma(4000, stage.low, config.shift, torch.Generator().manual_seed(0))
        assert float(drawn.max()) == pytest.approx(highest, abs=2e-3)
        assert float(drawn.min()) < 0.01
    assert (config.learning_rate, config.physics_weight, config.max_grad_norm, config.weight_decay) == (
        1e-5,
        0.30,
        0.5,
        0.01,
    )
    assert (adapter.hidden, adapter.top_k) == (128, 4)
    whole = parts_of(run().adapter, "C")
    assert len(whole["slow"]) == 2


def info(caption):
    return ClipInfo(
        source="a.mp4", source_hash="0", key="0", caption=caption, caption_from="file", window=0, last=True,
        start=0.0, frames=17,
        width=64, height=64, fps=16.0,
    )  # fmt: skip


def test_cached_clips_bring_labels_tokens_and_cached_flow(tmp_path):
    folder, flows = tmp_path / "cache", tmp_path / "flow"
    for number, caption in enumerate(["a bouncing ball", "my own film"]):
        tokens = torch.randn(3, 6).half()
        write_clip(
            folder / f"{number}.safetensors",
            torch.randn(4, 5, 8, 8).half(),
            tokens.mean(0),
            info(caption),
            "toy",
            tokens,
        )
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"prompt": "my own film", "labels": ["Thermal"]}\n')
    data = cached_clips(folder, flows, "latent", FrozenField(), labels)
    batch = data.batch([0, 1])
    assert isinstance(batch, Batch)
    assert batch.labels.nonzero()[:, 1].tolist() == [0, 4, 6]
    assert batch.flow.shape == (2, 2, 4, 8, 8)
    assert len(list(flows.glob("*.safetensors"))) == 2
    stamp = (flows / "0.safetensors").stat().st_mtime_ns
    data.batch([0])
    assert (flows / "0.safetensors").stat().st_mtime_ns == stamp
    (flows / "0.safetensors").write_bytes(b"cut off")
    data.batch([0])
    assert (flows / "0.safetensors").stat().st_size > 100


def test_a_run_does_not_go_on_with_clips_of_the_same_names_and_other_content(tmp_path, undrawn):
    def cached(folder, key="0", source="latent", words=("Fluid",)):
        labels = tmp_path / "labels.jsonl"
        labels.write_text(json.dumps({"prompt": "a film of mine", "labels": list(words)}))
        for number in range(2):
            origin = dataclasses.replace(info("a film of mine"), key=key, source_hash=str(number))
            tokens, latent = torch.randn(3, 6).half(), torch.randn(4, 5, 8, 7).half()
            path = tmp_path / folder / f"{number}.safetensors"
            write_clip(path, latent, tokens.mean(0), origin, "toy", tokens)
        return cached_clips(tmp_path / folder, tmp_path / "flow", source, FrozenField(), labels)

    def of(data):
        return PilaRun(FrozenField(), data, QUICK, SMALL, tmp_path / "run")

    of(cached("one")).run(on_step=lambda report: report.step < 2)
    assert of(cached("moved")).total_steps == 2
    for other in (cached("two", key="1"), cached("three", words=("Thermal",)), cached("four", source="raft")):
        with pytest.raises(TrainingError, match=r"the data is not what the run in .* began with"):
            of(other)


def test_flow_from_decoded_frames_and_from_raft(tmp_path):
    latent = torch.randn(4, 3, 16, 16)
    flow, confidence = cached_flow(tmp_path / "a.safetensors", latent, "pixels", FrozenField())
    assert flow.shape == (2, 2, 16, 16)
    assert 0 <= float(confidence.min()) <= float(confidence.max()) <= 1


@pytest.mark.parametrize("honest", [True, False])
def test_rafts_flow_leads_from_latent_frame_to_latent_frame_and_back(honest):
    """A network that answers how much brighter the second frame is, on frames 0 to 8 of their own
    brightnesses: two flows of three latent frames, each with its own way back; one that answers the same both
    ways contradicts itself."""

    class Brighter(torch.nn.Module):
        def forward(self, before, after):
            change = (after - before).mean(dim=(1, 2, 3)) / 2
            change = change if honest else change.abs()
            return [change[:, None, None, None] * torch.tensor([800.0, -1600.0]).view(1, 2, 1, 1)
                    .expand(len(before), 2, *before.shape[2:])]  # fmt: skip

    video = (torch.arange(9.0) ** 2 / 100).view(1, 9, 1, 1).expand(3, 9, 128, 128)
    flow, confidence = raft_flow(video, 3, (16, 16), 4, RaftFlow(Brighter(), "brighter"))
    assert flow.shape == (2, 2, 16, 16)
    for step, change in enumerate((0.16, 0.48) if honest else ()):
        expected = 100 * change * torch.tensor([1.0, -2.0])
        torch.testing.assert_close(flow[:, step, 4, 4], expected, rtol=1e-3, atol=1e-3)
    assert confidence.min() > 0.99 if honest else confidence.max() < 0.01
    with pytest.raises(ValueError, match="8 decoded frames do not belong to 3 latent frames"):
        raft_flow(video[:, :8], 3, (16, 16), 4, RaftFlow(Brighter(), "brighter"))


def test_a_cached_flow_is_of_its_clips_content_and_network(tmp_path):
    latent, path = torch.randn(4, 3, 16, 16), tmp_path / "a.safetensors"

    def stamp(**changes):
        given = {"latent": latent, "source": "latent", "key": "one"} | changes
        cached_flow(path, backbone=FrozenField(), **given)
        return path.stat().st_mtime_ns

    first = stamp()
    assert stamp() == first
    assert stamp(key="two") != first  # cached anew, at another rate say
    wide = stamp(key="two", latent=torch.randn(4, 5, 16, 16))
    assert load_weights(path, "pila_flow")[0]["flow"].shape[1] == 4
    assert stamp(key="two", latent=torch.randn(4, 5, 16, 16), raft=SimpleNamespace(identity="large")) != wide


def test_two_threads_do_not_decode_with_one_vae_at_once(tmp_path):
    """Wan's decoder keeps frames in itself while it decodes: a validation and the reading ahead of a training
    may both make flow that is not kept yet."""
    inside, most = [], []

    class OneAtATime(FrozenField):
        def decode_latent(self, latent):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.1)
            inside.pop()
            return super().decode_latent(latent)

    for number in range(2):
        latent, words = torch.randn(4, 5, 8, 8).half(), torch.randn(3, 6).half()
        path = tmp_path / "cache" / f"{number}.safetensors"
        write_clip(path, latent, words.mean(0), info("a ball"), "toy", tokens=words)
    data = cached_clips(tmp_path / "cache", tmp_path / "flow", "pixels", OneAtATime())
    with ThreadPoolExecutor(2) as threads:
        assert len(list(threads.map(data.load, range(2)))) == 2
    assert most == [1, 1]


def test_no_window_of_a_held_out_film_is_learned_from(tmp_path):
    """Twelve windows of three films, two held out: the five others of the first film are neither."""
    data = dataclasses.replace(clips(12), films=[*["a"] * 7, *["b"] * 3, *["c"] * 2])
    task = PilaRun(FrozenField(), data, QUICK, SMALL, tmp_path).task
    task.placed(SimpleNamespace(
        process_index=0, num_processes=1, device=torch.device("cpu"), distributed_type="NO", reduce=None
    ))  # fmt: skip
    read = []
    task.clips = SimpleNamespace(batch=read.extend)
    for number in range(10):
        task.read(number)
    assert (task.held, sorted(set(read))) == (2, [7, 8, 9, 10, 11])
    with pytest.raises(TrainingError, match="all 12 clips are of the videos of the 2 held out"):
        PilaRun(FrozenField(), dataclasses.replace(data, films=["a"] * 12), QUICK, SMALL)
    folder = tmp_path / "cache"
    for number in range(2):
        latent, words, path = torch.randn(4, 5, 8, 8), torch.randn(3, 6), folder / f"{number}.safetensors"
        write_clip(path, latent, words.mean(0), info("a ball"), "toy", tokens=words)
    assert cached_clips(folder, tmp_path, "latent", FrozenField()).films == ["0", "0"]


def test_toy_clips_are_drawn_encoded_once_and_labelled(tmp_path):
    class Toy(FrozenField):
        encoded, vae, text = 0, None, None

        def encode_video(self, video):
            self.encoded += len(video)
            return torch.nn.functional.adaptive_avg_pool3d(video, (9, 8, 8)).repeat(1, 2, 1, 1, 1)[:, :4]

        def embed_prompts(self, prompts):
            mask = torch.ones(len(prompts), 3, dtype=torch.bool)
            mask[:, 2] = False
            return torch.ones(len(prompts), 3, 6), mask

    backbone = Toy()
    data = toy_clips(10, 0, tmp_path, backbone)
    batch = data.batch(range(8))
    assert batch.labels.argmax(dim=1).tolist() == list(range(8))  # one clip of each world in turn
    assert batch.flow.shape == (8, 2, 8, 8, 8)
    assert float(batch.flow[0].abs().max()) > 0.1  # the ball moves
    assert torch.equal(batch.cond, torch.ones(8, 6))
    assert batch.tokens[0].sum(dim=1).tolist() == [6.0, 6.0]  # the masked one is not kept
    files = sorted(tmp_path.glob("*/*.safetensors"))
    assert [path.name for path in files] == data.names
    assert torch.equal(read_clip(files[3]).latent, batch.latent[3])
    assert torch.equal(data.load(3).flow, batch.flow[3]), "a flow that was read is the one that was computed"
    again = toy_clips(10, 0, tmp_path, backbone)
    assert backbone.encoded == 10
    assert again.fingerprint() == data.fingerprint()
    assert toy_clips(10, 0, tmp_path, backbone, worlds=["fluid"]).fingerprint() != data.fingerprint()


def test_toy_labels_are_the_worlds_that_were_drawn():
    _, prompts, worlds = mixture(64, 5, 0.0)
    expected = torch.stack([label_vector([world.replace("_", " ").title()]) for world in worlds])
    assert torch.equal(torch.stack([toy_labels(prompt) for prompt in prompts]), expected)


def test_data_that_does_not_fit_is_refused(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    with pytest.raises(DatasetError, match="holds no cached clip"):
        cached_clips(folder, tmp_path, "latent", FrozenField())
    write_clip(folder / "0.safetensors", torch.randn(4, 5, 8, 8), torch.zeros(6), info(""), "wan2.1")
    with pytest.raises(DatasetError, match=r"wan2.1 latents; this backbone has toy"):
        cached_clips(folder, tmp_path, "latent", FrozenField())
    write_clip(folder / "0.safetensors", torch.randn(4, 5, 8, 8), torch.zeros(6), info(""), "toy")
    with pytest.raises(DatasetError, match="--tokens"):
        cached_clips(folder, tmp_path, "latent", FrozenField()).batch([0])
    save_weights(
        folder / "other.safetensors", {}, WeightsInfo(kind="pila_adapter", latent_space="toy", config={})
    )
    (tmp_path / "labels.jsonl").write_text('{"prompt": "x", "labels": ["Plasma"]}\n')
    with pytest.raises(DatasetError, match="line 1"):
        cached_clips(folder, tmp_path, "latent", FrozenField(), tmp_path / "labels.jsonl")
    assert labels_of("a cat on a sofa", {}).sum() == 0


def test_backbones_that_predict_no_velocity_are_refused():
    backbone = FrozenField()
    backbone.prediction = "v"
    with pytest.raises(TrainingError, match="predicts 'v'"):
        PilaRun(backbone, clips(), QUICK, SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"wave_start": 1}, "start at"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(TrainingError, match=words):
        run(config=dataclasses.replace(QUICK, **change))


def test_wans_flow_is_raft_unless_told_otherwise(tmp_path):
    assert _flow(PilaCommand(out=tmp_path)) == "raft"
    assert _flow(PilaCommand(out=tmp_path, recipe="toy")) == "latent"
    assert _flow(PilaCommand(out=tmp_path, backbone="toy")) == "latent"
    assert _flow(PilaCommand(out=tmp_path, flow="pixels")) == "pixels"


def test_a_run_says_how_far_it_is_from_the_papers_clips_and_what_is_dead():
    training = run(config=dataclasses.replace(QUICK, coupling_steps=600))
    assert "shows 1,200 clips (12 different ones), 0.5% of the paper's 240,000" in budget(training)
    assert _findings({}) == ""
    assert (
        _findings({"dead_slots": ["p", "T"], "unused_experts": []})
        == " Constant fields, whose laws judge nothing: p, T."
    )


def test_films_show_the_clip_without_and_with_the_correction(tmp_path):
    import imageio.v3 as imageio

    backbone, training = FrozenField(), run()
    backbone.vae, backbone.latent_channels, backbone.shift = True, 4, 3.0
    backbone.x0 = lambda noisy, out, t: noisy - t.view(-1, 1, 1, 1, 1) * out
    for parameter in training.adapter.decoder.net[-1].parameters():
        torch.nn.init.normal_(parameter)
    (path,) = write_films(training.adapter, backbone, training.task.clips.batch([0]), tmp_path, 16)
    frames = imageio.imread(path).astype(float)
    assert frames.shape == (17, 64, 112, 3)  # two clips of 56 pixels side by side
    assert abs(frames[:, :, :56] - frames[:, :, 56:]).mean() > 1.0


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 1
    assert "--cache" in capsys.readouterr().err
    assert (
        main(["--out", str(tmp_path), "--recipe", "toy", "--toy-clips", "4", "--ablation", "everything"]) == 1
    )
    assert "plain_adapter" in capsys.readouterr().err
    words = ["--out", str(tmp_path), "--recipe", "toy", "--cache", str(tmp_path), "--toy-worlds", "elastic"]
    assert main(words) == 1
    assert "--toy-worlds is elastic; it chooses among drawn clips: add --toy-clips" in capsys.readouterr().err
    assert not (tmp_path / CHECKPOINT).exists()
