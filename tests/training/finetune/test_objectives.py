"""Objectives from words to a training step, with tiny teachers; recipes; the command from end to end."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latent_physics.encoders import VideoMAETeacher, VJEPATeacher
from latent_physics.encoders.need import TeacherNeed, cache_name
from latent_physics.kernels.drift import drift_loss
from latent_physics.methods import ldo, relational
from latent_physics.methods.moalign import MotionHead
from latent_physics.methods.weights import WeightsInfo, load_weights, read_info, save_weights
from latent_physics.tests.training.backbones import tiny
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.tests.training.finetune.tiny_teachers import JEPA, MAE
from latent_physics.training import objectives
from latent_physics.training.backbones import Activation
from latent_physics.training.backbones.formats import lora_to_diffusers
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.commands import finetune as finetune_command
from latent_physics.training.commands import motion_head as motion_head_command
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data import batches, features
from latent_physics.training.data.feature_cache import FeatureCache
from latent_physics.training.data.features import features_of, prepare_features
from latent_physics.training.loop.config import TrainerConfig
from latent_physics.training.loop.log import read_log
from latent_physics.training.objectives import parse
from latent_physics.training.objectives.align import load_compressor
from latent_physics.training.objectives.base import StepView
from latent_physics.training.recipes import load_recipe, names
from latent_physics.training.tasks import finetune as command
from latent_physics.training.tasks import motion_head as stage_one
from latent_physics.training.tasks.export import ExportConfig, export
from latent_physics.training.tasks.finetune import FinetuneConfig, finetune
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model

ALL = [
    "drift weight=0.4 lag=1",
    "repa weight=0.5 block=2 stride=1 hidden=16",
    "trd weight=0.5 block=1 stride=1 hidden=16",
    "soft_trd weight=0.5 block=2 stride=1 hidden=16",
    "tsa weight=0.5 block=2 stride=1 hidden=16",
    "mtsa weight=0.5 block=2 stride=1 hidden=16 keep=0.3",
    "pda weight=0.5 block=2 stride=1 hidden=16 context=0.25 window=12",
]


def quiet() -> ProgressLine:
    return ProgressLine("test", io.StringIO())


@pytest.fixture(autouse=True)
def tiny_teachers(monkeypatch):
    """Random encoders of the real classes instead of downloads."""

    def load(name, source=None, device="cpu"):
        torch.manual_seed(0)
        if "videomae" in name:
            return VideoMAETeacher(VideoMAEModel(VideoMAEConfig(**MAE)), name)
        return VJEPATeacher(VJEPA2Model(VJEPA2Config(**JEPA)), name)

    monkeypatch.setattr(features, "load_teacher", load)


MAE_KEY, JEPA_KEY = (
    "videomae, OpenGVLab/VideoMAEv2-Base",
    "vjepa2, facebook/vjepa2-vitl-fpc64-256, context 0.5 of 16",
)


def view(grid=(4, 2, 2), target=(4, 4, 4), channels=6, seed=0, frames=4, block=1) -> StepView:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 16, frames, 4, 4, generator=generator)
    tokens = torch.randn(2, math.prod(grid), 8, generator=generator)
    features = {
        MAE_KEY: {
            "features": torch.randn(2, channels, *target, generator=generator),
            "exact_saliency": torch.rand(2, *target, generator=generator),
        },
        JEPA_KEY: {
            "features": torch.randn(2, channels, 2, *target[1:], generator=generator),
            "exact_first": torch.tensor([0, 0]),
        },
    }
    x0 = latent + 0.3 * torch.randn(latent.shape, generator=generator)
    taps = {block: Activation(tokens=tokens, grid=grid)}
    return StepView(latent=latent, x0=x0, signal=torch.tensor([0.9, 0.3]), taps=taps, features=features)


def built(text: str):
    return build_one(text, width=8, blocks=2, channels=6)


def build_one(text: str, *, width: int, blocks: int, channels: int):
    """One objective as the trainer builds it."""
    torch.manual_seed(0)
    widths = {need.key: channels for need in parse.needed_teachers([text])}
    (objective,) = parse.build([text], width=width, blocks=blocks, channels=widths).values()
    return objective


def test_drift_is_equation_six_weighted_by_each_sample_s_signal_and_has_the_papers_ablations():
    seen = view()
    alone = [drift_loss(seen.x0[b : b + 1], seen.latent[b : b + 1], 2, 0.1) for b in range(2)]
    torch.testing.assert_close(built("drift lag=2 eps=0.1")(seen), (0.9 * alone[0] + 0.3 * alone[1]) / 2)

    def change(z, lag, dense):
        moved = z[:, :, lag:] - z[:, :, :-lag]
        return moved if dense else moved.mean(dim=(3, 4), keepdim=True)

    for target in ("mean", "dense"):
        for scale in ("relative", "raw"):
            ours, theirs = (change(z, 1, target == "dense") for z in (seen.x0, seen.latent))
            terms = []
            for b, signal in enumerate((0.9, 0.3)):
                for i in range(ours.shape[2]):
                    error = (ours[b, :, i] - theirs[b, :, i]).square().sum()
                    terms.append(
                        signal
                        * (error / (theirs[b, :, i].square().sum() + 0.2) if scale == "relative" else error)
                    )
            expected = torch.stack(terms).mean()
            found = built(f"drift lag=1 eps=0.2 target={target} scale={scale}")(seen)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_same_clips_give_one_drift_loss_and_gradient_in_one_batch_and_in_micro_batches():
    objective = built("drift lag=1")
    torch.manual_seed(0)
    latent = torch.randn(4, 16, 3, 4, 4)
    signal = torch.tensor([0.95, 0.5, 0.1, 0.01])

    def loss_and_gradient(parts):
        x0 = (latent + 0.3).requires_grad_()
        losses = [
            objective(StepView(latent=latent[part], x0=x0[part], signal=signal[part])) for part in parts
        ]
        total = torch.stack(losses).mean()
        return total.detach(), torch.autograd.grad(total, x0)[0]

    whole = loss_and_gradient([slice(0, 4)])
    micro = loss_and_gradient([slice(b, b + 1) for b in range(4)])
    torch.testing.assert_close(whole[0], micro[0])
    torch.testing.assert_close(whole[1], micro[1])


@pytest.mark.parametrize("target", ["mean", "dense"])
def test_epsilon_follows_the_scale_of_the_data(target):
    """Latents ten times as large give the same loss, because epsilon is a share of the median squared
    drift."""
    seen, losses, units = view(), [], []
    for factor in (1.0, 10.0):
        objective = built(f"drift lag=1 eps=0.5 target={target}")
        assert objective.unit == 1.0
        units.append(objective.calibrate(factor * seen.latent)["median_squared_drift"])
        assert objective.unit == units[-1]
        losses.append(
            objective(StepView(latent=factor * seen.latent, x0=factor * seen.x0, signal=seen.signal))
        )
    change = seen.latent[:, :, 1:] - seen.latent[:, :, :-1]
    sizes = (
        (change if target == "dense" else change.mean(dim=(3, 4), keepdim=True)).square().sum(dim=(1, 3, 4))
    )
    assert units[0] == pytest.approx(float(sizes.flatten().median()), rel=1e-5)
    assert units[1] == pytest.approx(100 * units[0], rel=1e-5)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def test_pairs_that_stand_still_do_not_rule_the_drift_loss():
    """A thousandth of a median drift, estimated wrong by the same amount as the others, weighs no more than
    they do."""
    torch.manual_seed(0)
    latent = torch.randn(1, 16, 3, 4, 4)
    latent[:, :, 2] = latent[:, :, 1] + 1e-3
    x0 = latent.clone().requires_grad_()
    error = torch.zeros_like(latent)
    error[:, :, 0], error[:, :, 2] = 0.3, 0.3  # both pairs are off by 0.3
    objective = built("drift lag=1")
    objective.unit = float((latent[:, :, 1] - latent[:, :, 0]).mean(dim=(2, 3)).square().sum())
    loss = objective(StepView(latent=latent, x0=x0 + error, signal=torch.ones(1)))
    (gradient,) = torch.autograd.grad(loss, x0)
    assert gradient[:, :, 2].norm() < 15 * gradient[:, :, 0].norm()
    sharp = drift_loss(x0 + error, latent, 1, 1e-6)
    (gradient,) = torch.autograd.grad(sharp, x0)
    assert gradient[:, :, 2].norm() > 1000 * gradient[:, :, 0].norm()  # what an epsilon near zero does


@pytest.mark.parametrize("text", ["repa", "trd", "soft_trd", "tsa", "mtsa keep=0.3", "pda"])
def test_alignments_are_the_methods_on_projected_tokens(text):
    """The objective projects the block without its first frame and calls the method; gradients reach block
    and projector."""
    kind = text.split()[0]
    objective, seen = built(f"{text} block=1 stride=1 hidden=8"), view()
    seen.taps[1].tokens.requires_grad_(True)
    later, grid = relational.without_first_frame(seen.taps[1].tokens, (4, 2, 2))
    target = (3, 4, 4) if kind == "pda" else (4, 4, 4)  # the changes' rate is the tokens' own
    student = objective.projector(later, grid, target)
    teacher = relational.to_tokens(seen.features[objective.teachers[0].key]["features"])
    if kind == "repa":
        expected = relational.repa(student, teacher)
    elif kind == "pda":
        expected = ldo.pda_loss(student[:, 16:] - student[:, :-16], teacher, (2, 4, 4))
    elif kind == "mtsa":
        mask = relational.top_share(seen.features[objective.teachers[0].key]["exact_saliency"], 0.3)
        expected = relational.mtsa(student, teacher, target, mask)
    else:
        expected = getattr(relational, kind)(student, teacher, target)
    loss = objective(seen)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert seen.taps[1].tokens.grad[:, 4:].abs().sum() > 0
    assert seen.taps[1].tokens.grad[:, :4].abs().sum() == 0
    assert all(value.grad is not None for value in objective.projector.parameters())


@pytest.mark.parametrize("text", ["repa", "trd", "soft_trd", "tsa", "mtsa keep=0.3"])
def test_a_teacher_on_the_tokens_grid_less_its_mean_over_time(text):
    """Its features are averaged over what a token covers, its saliency too; the tokens are neither stretched
    nor mixed."""
    kind = text.split()[0]
    objective, seen = (
        built(f"{text} block=1 stride=1 hidden=8 grid=tokens centre=true"),
        view(target=(6, 4, 4)),
    )
    found = seen.features[MAE_KEY]
    means = lambda x: (  # noqa: E731
        x.unflatten(-3, (3, 2)).unflatten(-2, (2, 2)).unflatten(-1, (2, 2)).mean(dim=(-5, -3, -1))
    )
    volume = means(found["features"])
    teacher = relational.to_tokens(volume - volume.mean(dim=2, keepdim=True))
    student = objective.projector(seen.taps[1].tokens[:, 4:], (3, 2, 2), (3, 2, 2))
    if kind == "repa":
        expected = relational.repa(student, teacher)
    elif kind == "mtsa":
        mask = relational.top_share(means(found["exact_saliency"]), 0.3)
        expected = relational.mtsa(student, teacher, (3, 2, 2), mask)
    else:
        expected = getattr(relational, kind)(student, teacher, (3, 2, 2))
    torch.testing.assert_close(objective(seen), expected)


def test_cogvideox_1_5_drops_one_latent_frame_and_compares_changes_of_tokens():
    """Two latent frames a token: 4 frames of tokens are 8 latent frames, of which the first alone is left
    out; PDA's changes are those between tokens, and the first token, half of which is that frame, plays no
    part."""
    seen = view(grid=(4, 2, 2), target=(14, 4, 4), frames=8)
    objective = built("tsa block=1 stride=1 hidden=8")
    later, grid = relational.without_first_frame(seen.taps[1].tokens, (4, 2, 2), 8)
    assert grid == (7, 2, 2)
    teacher = relational.to_tokens(seen.features[MAE_KEY]["features"])
    expected = relational.tsa(objective.projector(later, grid, (14, 4, 4)), teacher, (14, 4, 4))
    torch.testing.assert_close(objective(seen), expected)
    # Features of latent frames 1 to 7, whose changes the world model expects from frame 2 on.
    latents = torch.randn(2, 6, 7, 4, 4, generator=torch.Generator().manual_seed(5))
    features = {"features": (latents[:, :, 2:] - latents[:, :, 1:-1]), "exact_first": torch.tensor([1, 1])}
    seen.features = {**seen.features, JEPA_KEY: features}
    objective = built("pda block=1 stride=1 hidden=8")
    tokens = relational.to_volume(seen.taps[1].tokens, (4, 2, 2))[:, :, 1:]
    student = relational.to_volume(
        objective.projector(relational.to_tokens(tokens), (3, 2, 2), (3, 4, 4)), (3, 4, 4)
    )
    pairs = latents[:, :, 1:].unflatten(2, (3, 2)).mean(3)
    moved, expected = (relational.to_tokens(x[:, :, 1:] - x[:, :, :-1]) for x in (student, pairs))
    torch.testing.assert_close(
        objective(seen), ldo.pda_loss(moved, expected, (2, 4, 4)), rtol=1e-4, atol=1e-5
    )


def test_the_written_example_of_an_objective_is_a_whole_file(tmp_path, monkeypatch):
    """docs/architecture.md: one file in the folder of objectives is found, parsed, built and right."""
    page = Path(parse.__file__).parents[2] / "docs" / "architecture.md"
    (tmp_path / "brightness.py").write_text(page.read_text().split("```python\n")[1].split("```")[0])
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    name = f"{objectives.__name__}.brightness"
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]  # so that it is also gone afterwards
    found = {objective.kind: objective for objective in parse.found_here()}
    assert found.keys() == {*parse.KINDS, "brightness"}
    monkeypatch.setitem(parse.KINDS, "brightness", (found["brightness"].settings_type, found["brightness"]))
    built = parse.build(["brightness weight=0.5"], width=8, blocks=2, channels={})
    shown = view()
    expected = (sum(shown.x0.flatten().tolist()) - sum(shown.latent.flatten().tolist())) / shown.x0.numel()
    assert float(built["brightness"](shown)) == pytest.approx(expected**2, rel=1e-3)
    assert built["brightness"].settings.weight_at(3) == 0.5


def test_blocks_of_older_checkpoints_keep_their_meaning(tmp_path):
    """They counted from 0 and do not say so: an exported file counts from 1, and such a run is not resumed by
    mistake."""
    old = {"objectives": ["drift lag=2", "tsa weight=0.5 block=17 temperature=0.1", "repa weight=0.5"]}
    assert parse.counted_from_one(old) == [
        "drift lag=2",
        "tsa weight=0.5 block=18 temperature=0.1",
        "repa weight=0.5 block=19",
    ]
    assert parse.counted_from_one(old | {"blocks_from": 1}) == old["objectives"]
    config = settings(tmp_path, objectives=["repa block=2 stride=1 hidden=8"])
    _, path = finetune(config, progress=quiet())
    assert read_info(path).recipe["objectives"] == config.objectives
    tensors, info = load_weights(
        checkpoint := tmp_path / "run" / "checkpoint.safetensors", "training_checkpoint"
    )
    before = dict(info.config, objectives=["repa block=1 stride=1 hidden=8"])
    del before["blocks_from"]
    save_weights(checkpoint, tensors, replace(info, config=before))
    older = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "older.safetensors"))
    assert read_info(older).recipe["objectives"] == config.objectives
    same_words = replace(config, objectives=["repa block=1 stride=1 hidden=8"])
    with pytest.raises(TrainingError, match="blocks_from None -> 1"):
        finetune(same_words, progress=quiet())


def test_soft_trd_with_a_motion_head_aligns_with_its_subspace(tmp_path):
    torch.manual_seed(1)
    sizes = {"channels": 6, "hidden": 5, "motion": 4, "size": [8, 8]}
    head = MotionHead(**sizes)
    path = tmp_path / "head.safetensors"
    info = WeightsInfo(kind="motion_head", latent_space="pixels", config={"sizes": sizes, "teacher": "x"})
    save_weights(path, head.state_dict(), info)
    objective, seen = built(f"soft_trd block=1 stride=1 motion_head={path}"), view()
    assert not any("frozen" in name or "compressor" in name for name in objective.state_dict())
    with torch.no_grad():
        motion = head.compressor(seen.features[MAE_KEY]["features"])
    later, grid = relational.without_first_frame(seen.taps[1].tokens, (4, 2, 2))
    expected = relational.soft_trd(
        objective.projector(later, grid, (4, 4, 4)), relational.to_tokens(motion), (4, 4, 4)
    )
    torch.testing.assert_close(objective(seen), expected)
    with pytest.raises(TrainingError, match="trained on features of 6 channels"):
        load_compressor(str(path), 7)


def test_weights_follow_their_schedule():
    _, settings = parse.parse("tsa weight=2 start=10 ramp=4 stop=20")
    assert [settings.weight_at(step) for step in (0, 9, 10, 11, 13, 19, 20)] == [0, 0, 0.5, 1.0, 2.0, 2.0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gravity weight=1", "objective 'gravity' is unknown; choose one of drift"),
        ("drift wieght=1", "'wieght=1' is not a setting of the objective drift; it has weight"),
        ("drift lag=two", "lag of the objective drift is 'two'"),
        ("tsa block=9", "block of the objective tsa is 9; it must be 1 to 2 for this model"),
        ("tsa block=0", "block of the objective tsa is '0'; it must be at least 1"),
        (
            "tsa block=1 grid=both",
            "grid of the objective tsa is 'both'; it must be one of 'teacher' or 'tokens'",
        ),
        ("mtsa block=1 keep=0", "keep of the objective mtsa is '0'"),
        ("drift target=sparse", "it must be one of 'mean' or 'dense'"),
        ("drift lag=0", "lag of the objective drift is '0'; it must be at least 1"),
        ("drift weight=inf", "weight of the objective drift is 'inf'"),
        ("tsa block=1 temperature=0", "temperature of the objective tsa is '0'; it must be above 0"),
        ("soft_trd block=1 decay=-1", "decay of the objective soft_trd is '-1'; it must be above 0"),
        ("repa block=1 stride=0", "stride of the objective repa is '0'"),
        (
            "repa block=1 teacher=dino",
            "teacher of the objective repa is 'dino'; it must be one of 'videomae', 'vjepa2'",
        ),
        ("pda block=1 context=1", "context of the objective pda is '1'; it must be below 1"),
        ("pda block=1 teacher=videomae", "it must be one of 'vjepa2' or 'toy_vjepa2'"),
        ("soft_trd block=1 motion_head=no.safetensors", "no.safetensors does not exist"),
    ],
)
def test_bad_objectives_are_one_sentence(text, message):
    with pytest.raises(TrainingError, match=message):
        built(text)


def test_features_leave_the_first_frame_out_and_know_what_moved():
    teacher = features.load_teacher("videomae")
    video = torch.rand(3, 9, 32, 32)
    found = features_of(teacher, video, TeacherNeed(name="videomae"), step=4)
    torch.testing.assert_close(found["features"], teacher.features(video[None, :, 1:])[0])
    assert found["exact_saliency"].shape == found["features"].shape[1:] == (4, 4, 4)
    world, need = features.load_teacher("vjepa2"), TeacherNeed(name="vjepa2", context=0.25, window=12)
    video = torch.rand(3, 17, 32, 32)
    forecast = features_of(world, video, need, step=4)
    changes, first = world.expected_changes(video[None, :, 1:], 4, 12, 0.25)
    assert int(forecast["exact_first"]) == first == 1
    torch.testing.assert_close(forecast["features"], changes[0])


def settings(tmp_path, **changes) -> FinetuneConfig:
    data = tmp_path / "data"
    if not data.exists():
        data.mkdir()
        tiny_run.clips(data, shapes=[(4, 4, 4)] * 6, width=4096)
        tiny.native_files(tmp_path / "base")
    trainer = TrainerConfig(
        steps=2, batch=2, learning_rate=1e-3, held_out=0.2, validate_every=1, save_every=1, tensorboard=False
    )
    defaults = {
        "out": tmp_path / "run",
        "data": data,
        "backbone": "toy",
        "dit": tmp_path / "base" / "dit.safetensors",
    }
    return FinetuneConfig(
        **(defaults | {"tune": TuneConfig(rank=2), "trainer": trainer, "objectives": ALL} | changes)
    )


def test_the_command_trains_with_every_objective_at_once(tmp_path):
    outcome, path = finetune(settings(tmp_path), progress=quiet())
    assert outcome.step == 2
    assert path.is_file()
    row = read_log(tmp_path / "run" / "log.csv")[-1]
    for text in ALL:
        kind = text.split()[0]
        assert math.isfinite(row[kind])
        assert math.isfinite(row[f"val_{kind}"])
    weights = {text.split()[0]: parse.parse(text)[1].weight for text in ALL}
    assert row["loss"] == pytest.approx(
        row["denoise"] + sum(weights[kind] * row[kind] for kind in weights), rel=1e-4
    )
    made = list((tmp_path / "data" / "features").glob("*.safetensors"))
    assert len(made) == 12  # six clips, two teachers
    before = {path: path.stat().st_mtime_ns for path in made}
    finetune(settings(tmp_path, out=tmp_path / "again"), progress=quiet())
    assert {path: path.stat().st_mtime_ns for path in made} == before


def test_missing_videos_and_damaged_features_are_told(tmp_path):
    config = settings(tmp_path)
    frames = tmp_path / "data" / "frames" / "clip3.safetensors"
    kept = frames.read_bytes()
    frames.unlink()
    with pytest.raises(
        TrainingError,
        match=r"clip3\.mp4 is needed for a teacher's features; give its folder with --videos",
    ):
        finetune(config, progress=quiet())
    frames.write_bytes(kept)
    finetune(config, progress=quiet())
    cache = FeatureCache(tmp_path / "data" / "features")
    for damaged in cache.folder.glob("*.safetensors"):
        damaged.write_bytes(b"cut")
    with pytest.raises(command.ERRORS, match="not a readable safetensors file"):
        finetune(settings(tmp_path, out=tmp_path / "other"), progress=quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "there is nothing to train on"),
        ({"source": "x"}, "dit and source name two models"),
        ({"tune": TuneConfig(mode="full"), "fp8_storage": True}, "fp8_storage is for a LoRA"),
        ({"objectives": ["soft_trd block=1 motion_head=no.safetensors"]}, "no.safetensors does not exist"),
        ({"init": Path("no.safetensors")}, "init is no.safetensors, which does not exist"),
        ({"tune": TuneConfig(rank=0)}, "rank is 0"),
        ({"trainer": TrainerConfig(beta2=1.0)}, "beta2 is 1.0"),
        ({"trainer": TrainerConfig(precision="fp16")}, "fp16, which needs a CUDA GPU"),
        (
            {"objectives": ["drift lag=4"]},
            "the shortest clip has 4 latent frames, too few for a drift at lag 4",
        ),
    ],
)
def test_bad_commands_are_one_sentence(changes, message, tmp_path):
    if "fp16" in message and torch.cuda.is_available():
        pytest.skip("fp16 runs on this GPU")
    with pytest.raises((TrainingError, *command.ERRORS), match=message):
        finetune(settings(tmp_path, **changes), progress=quiet())
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_motion_head_learns_flow_and_serves_stage_two(tmp_path, monkeypatch):
    class Flow:
        def flow(self, video, step, size):
            frames = video.shape[2] // step
            return torch.ones(1, 2, frames - 1, *size) * torch.tensor([2.0, -1.0]).view(1, 2, 1, 1, 1)

    monkeypatch.setattr(stage_one, "load_raft", lambda *args: Flow())
    config = settings(tmp_path)
    trainer = stage_one.MotionHeadTrainer(
        steps=60,
        batch=3,
        learning_rate=1e-2,
        held_out=0.2,
        validate_every=30,
        save_every=30,
        tensorboard=False,
    )
    head = stage_one.MotionHeadConfig(
        data=config.data,
        out=tmp_path / "head",
        flow_height=16,
        flow_width=16,
        motion=4,
        hidden=8,
        trainer=trainer,
    )
    outcome, path = stage_one.train_motion_head(head, progress=quiet())
    rows = read_log(tmp_path / "head" / "log.csv")
    assert rows[-1]["flow"] < 0.3 * rows[0]["flow"]
    assert outcome.step == 60
    text = f"soft_trd block=2 stride=1 motion_head={path}"
    with pytest.raises(
        TrainingError, match=f"it must be {MAE_KEY!r}, with which the motion head was trained"
    ):
        finetune(settings(tmp_path, objectives=[f"{text} source=other/encoder"]), progress=quiet())
    finetune(settings(tmp_path, objectives=[text]), progress=quiet())
    assert math.isfinite(read_log(tmp_path / "run" / "log.csv")[-1]["soft_trd"])


def test_the_toy_worlds_own_flow_needs_no_network(tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("RAFT was loaded")

    monkeypatch.setattr(stage_one, "load_raft", asked)
    data, cache = tmp_path / "data", FeatureCache(tmp_path / "flow")
    data.mkdir()
    tiny_run.clips(data, shapes=[(3, 8, 8)])
    clips = batches.TrainingClips(data, batch=1, seed=0)
    config = stage_one.MotionHeadConfig(
        raft="toy_oracle", teacher="toy_oracle", flow_height=32, flow_width=32
    )
    stage_one.prepare_flow(clips, cache, config, "cpu", quiet())
    assert cache.read(config.flow_name, clips.entries[0].identity)["flow"].shape == (2, 3, 32, 32)


def test_flow_and_features_are_of_the_same_part_of_a_frame(tmp_path, monkeypatch):
    """56 columns hold two patches of 24: what moves in the 8 beyond is in no feature, and in no flow."""

    class Brightness:
        def flow(self, video, step, size):
            shown = torch.nn.functional.adaptive_avg_pool2d(video[0, :2, step::step].flatten(0, 1), size)
            return shown.unflatten(0, (2, -1))[None]

    monkeypatch.setattr(stage_one, "load_raft", lambda *args: Brightness())
    data, cache = tmp_path / "data", FeatureCache(tmp_path / "flow")
    data.mkdir()
    tiny_run.clips(data, shapes=[(3, 6, 7)])
    clips = batches.TrainingClips(data, batch=1, seed=0)
    path = data / "frames" / "clip0.safetensors"
    frames = torch.zeros(9, 48, 56, 3, dtype=torch.uint8)
    frames[:, :, 24:48], frames[:, :, 48:] = 100, 255  # the second column of features; beyond all of them
    save_file({"frames": frames}, path)
    config = stage_one.MotionHeadConfig(flow_height=2, flow_width=2)
    stage_one.prepare_flow(clips, cache, config, "cpu", quiet())
    prepare_features(clips, [config.need], cache)
    identity = clips.entries[0].identity
    assert cache.read(cache_name(config.need), identity)["features"].shape[2:] == (2, 2)
    flow = cache.read(config.flow_name, identity)["flow"]
    assert flow.shape == (2, 3, 2, 2)
    expected = torch.tensor([0.0, 100 / 255]).expand(2, 3, 2, 2)
    torch.testing.assert_close(flow, expected, atol=1e-3, rtol=0)


def test_stage_one_has_recipes_with_the_papers_numbers(tmp_path, capsys):
    assert names("motion-head") == [
        "moalign-2b-stage1",
        "moalign-wan-24gb-stage1",
        "moalign-wan-stage1",
        "toy-stage1",
    ]
    recipe = load_recipe("moalign-2b-stage1", stage_one.MotionHeadConfig, "motion-head")
    t = recipe.trainer
    assert (t.steps, t.batch, t.learning_rate, t.weight_decay, t.validate_every) == (
        50_000,
        128,
        1e-4,
        1e-3,
        1000,
    )
    assert (t.beta1, t.beta2) == (0.9, 0.95)
    assert (recipe.motion, recipe.hidden, recipe.flow_height, recipe.flow_width, t.precision) == (
        64,
        256,
        128,
        192,
        "bf16",
    )
    assert motion_head_command.main(["--recipe", "toy-stage1"]) == 1
    assert "there is nothing to train on; give --data" in capsys.readouterr().err
    assert motion_head_command.main(["--recipe", "toy-stage1", "--data", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["projector_learning_rate", "projector_max_grad_norm", "prompt_dropout", "checkpointing"]
)
def test_stage_one_refuses_what_only_a_fine_tune_has(name, tmp_path, capsys):
    """No transformer, no projector and no prompt is in it: these were taken, and did nothing."""
    flag = [f"--{name.replace('_', '-')}", *(["0.5"] if name != "checkpointing" else [])]
    with pytest.raises(SystemExit):
        motion_head_command.main(["--data", str(tmp_path), *flag])
    assert flag[0] in capsys.readouterr().err
    recipe = tmp_path / "mine.json"
    recipe.write_text(json.dumps({"trainer": {name: 0.5, "steps": 2}}))
    with pytest.raises(TrainingError, match=f"mine.json: trainer has the key {name!r}, which is unknown"):
        load_recipe(str(recipe), stage_one.MotionHeadConfig, "motion-head")


def test_clips_too_short_for_a_teacher_are_told_before_any_feature_is_made(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    tiny_run.clips(data, shapes=[(3, 4, 4)] * 2 + [(2, 4, 4)])
    clips, cache = batches.TrainingClips(data, batch=1, seed=0), FeatureCache(tmp_path / "features")
    need = TeacherNeed(name="vjepa2", context=0.5)
    with pytest.raises(
        TrainingError, match=r"clip2\.mp4 has 5 frames; vjepa2 needs clips of at least 17 here"
    ):
        prepare_features(clips, [need], cache)
    assert not cache.folder.exists()


def test_stopping_before_the_training_leaves_no_run_behind(tmp_path):
    """A run begun on half of the clips would refuse the others: none is begun, and the same command then
    trains."""
    stop = StopRequest()

    class Line(ProgressLine):
        def show(self, *args, **kwargs):
            stop.asked = True

    config = settings(tmp_path, objectives=ALL[1:2])
    outcome, path = finetune(config, stop=stop, progress=Line("test", io.StringIO()))
    assert (outcome.step, outcome.stopped, path) == (0, True, None)
    assert len(list((tmp_path / "data" / "features").glob("*.safetensors"))) == 1
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert finetune(config, progress=quiet())[0].step == 2


def test_processes_share_the_teachers_work(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    tiny_run.clips(data, shapes=[(3, 4, 4)] * 3)
    clips, cache, need = (
        batches.TrainingClips(data, batch=1, seed=0),
        FeatureCache(tmp_path),
        TeacherNeed(name="videomae"),
    )
    made = []
    for number in range(2):
        prepare_features(clips, [need], cache, share=(number, 2))
        made.append([cache.has(cache_name(need), entry.identity) for entry in clips.entries])
    assert made == [[True, False, True], [True, True, True]]


def test_features_belong_to_the_weights_they_were_made_with(tmp_path):
    """Of a file and of a folder: other content is another name, also under the same path."""
    seen = set()
    for content in (b"one", b"other"):
        (tmp_path / "model.safetensors").write_bytes(content)
        for source in (tmp_path, tmp_path / "model.safetensors"):
            seen.add(cache_name(TeacherNeed(name="videomae", source=str(source))))
    assert len(seen) == 2  # one file in a folder is the file
    assert cache_name(TeacherNeed(name="vjepa2", source="some/hub-id")).startswith("vjepa2, some/hub-id")


def test_every_recipe_is_whole():
    papers = (
        "lamo-2b-full lamo-5b-lora tsa-2b mtsa-2b moalign-2b moalign-wan "
        "videorepa-2b videorepa-5b repa-2b ldo-pda"
    )
    assert set(papers.split()) <= set(names())
    for name in names():
        recipe = load_recipe(name, FinetuneConfig)
        assert recipe.about
        assert recipe.recipe == name
        for text in recipe.objectives:
            parse.parse(text)
        ours = name.endswith("-24gb") or name.startswith("lamo-wan22")  # of a size that one card trains
        if recipe.backbone != "toy" and not ours:
            assert recipe.trainer.batch * recipe.trainer.accumulate == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objektives": []}, "has the key 'objektives', which is unknown; keys there are about, attention,"),
        ({"trainer": {"steps": "many"}}, "steps is 'many'; it must be a whole number"),
        ({"backbone": "sora"}, "backbone is 'sora'; it must be one of 'wan'"),
        ({"tune": 4}, "tune is 4; it must be an object with settings"),
        ({"objectives": "drift"}, "objectives is 'drift'; it must be a list"),
        ([], "must hold an object"),
    ],
)
def test_bad_recipes_are_one_sentence(values, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(TrainingError, match=message):
        load_recipe(str(path), FinetuneConfig)


def test_recipes_that_are_no_recipes(tmp_path):
    with pytest.raises(TrainingError, match="choose one of lamo-2b-full"):
        load_recipe("lamo-9b", FinetuneConfig)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(TrainingError, match="not a readable JSON"):
        load_recipe(str(tmp_path / "x.json"), FinetuneConfig)


def test_the_command_line_changes_a_recipe(tmp_path, capsys):
    config = settings(tmp_path, objectives=[])
    recipe = tmp_path / "mine.json"
    recipe.write_text(
        json.dumps(
            {"backbone": "toy", "objectives": ["drift lag=1"], "tune": {"rank": 2}, "trainer": {"steps": 5}}
        )
    )
    argv = [
        "--recipe",
        str(recipe),
        "--data",
        str(config.data),
        "--dit",
        str(config.dit),
        "--out",
        str(tmp_path / "cli"),
    ]
    assert finetune_command.main([*argv, "--steps", "1", "--no-tensorboard", "--held-out", "0"]) == 0
    assert "mine-lora.safetensors" in capsys.readouterr().out
    assert finetune_command.main([*argv, "--objectives", "dirft"]) == 1
    assert "objective 'dirft' is unknown" in capsys.readouterr().err


def test_caption_lists(tmp_path):
    from latent_physics.training.data.captions import read_list

    for name in ("a.mp4", "b.mp4", "c.webm"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.jsonl").write_text(
        '{"video": "a.mp4", "caption": "one  ball"}\n\n{"file_name": "b", "text": "two"}\n'
    )
    (tmp_path / "openvid.csv").write_text(
        "video,caption,aesthetic score\na.mp4,a ball,5.1\nmissing.mp4,none,4\n"
    )
    (tmp_path / "wisa.json").write_text(
        json.dumps({"c": {"captions": {"short": "ice", "long": "ice melts in the sun"}}})
    )
    assert read_list(tmp_path / "list.jsonl").texts == {
        tmp_path / "a.mp4": "one ball",
        tmp_path / "b.mp4": "two",
    }
    assert read_list(tmp_path / "openvid.csv").texts == {tmp_path / "a.mp4": "a ball"}
    assert read_list(tmp_path / "wisa.json").texts == {tmp_path / "c.webm": "ice melts in the sun"}
    bad = {
        "no.jsonl": (None, "does not exist"),
        "b.jsonl": ('{"video": "a.mp4"}', "entry 1, names no caption"),
        "c.jsonl": ("{", "cannot be read"),
        "d.json": ("[1]", "a list of entries"),
        "e.txt": ("x", "is no caption list"),
        "f.csv": ("video,caption\nz.mp4,x\n", "none of the 1 videos"),
    }
    for name, (text, message) in bad.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(TrainingError, match=message):
            read_list(tmp_path / name)


def test_frames_of_a_real_clip_come_back_as_they_were_cut(tmp_path):
    """From the video itself: found by content, cut by index, refused where the cut differs."""
    import imageio.v3 as imageio
    import numpy as np
    from latent_physics.training.data.clip import ClipInfo, Entry
    from latent_physics.training.data.features import FrameSource
    from latent_physics.training.data.videos import content_hash, windows

    frames = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    film = tmp_path / "film.mp4"
    imageio.imwrite(film, frames, fps=8, codec="libx264")
    cut = list(windows(film, frames=9, width=32, height=32, limit=0))
    info = ClipInfo(
        source=film.name, source_hash=content_hash(film), key="k", caption="", caption_from="none", window=1,
        last=True,
        start=cut[1].start, frames=9, width=32, height=32, fps=cut[1].fps,
    )  # fmt: skip
    source = FrameSource(tmp_path / "none", [film])
    entry = Entry(path=tmp_path / "x.safetensors", shape=(16, 3, 4, 4), info=info)
    source.check(entry)
    torch.testing.assert_close(
        source.read(entry), torch.from_numpy(cut[1].frames).permute(3, 0, 1, 2).float() / 255
    )
    thinned = next(windows(film, frames=4, width=32, height=32, fps=2, limit=1))
    slow = replace(info, window=0, start=0.0, frames=4, fps=thinned.fps, fps_limit=2)
    expected = torch.from_numpy(thinned.frames).permute(3, 0, 1, 2).float() / 255
    torch.testing.assert_close(source.read(replace(entry, info=slow)), expected)
    with pytest.raises(TrainingError, match="cannot be cut as it was"):
        source.read(replace(entry, info=replace(slow, fps_limit=0)))  # the same start, other frames


def test_objectives_get_names_of_their_own():
    together = parse.build(
        ["repa block=1", "drift", "tsa block=1", "tsa block=2"], width=8, blocks=2, channels={MAE_KEY: 6}
    )
    assert list(together) == ["repa", "drift", "tsa", "tsa_2"]


def test_caching_takes_captions_from_a_list(tmp_path):
    """Only the listed videos are cached, under the list's captions."""
    import imageio.v3 as imageio
    import numpy as np
    from latent_physics.training.data.cache import cache_clips
    from latent_physics.training.data.clip import read_clip
    from latent_physics.training.data.format import CacheConfig
    from latent_physics.training.data.sources import listed_captions

    for index in range(3):
        frames = np.random.default_rng(index).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
        imageio.imwrite(tmp_path / f"{index}.mp4", frames, fps=8, codec="libx264")
    (tmp_path / "list.csv").write_text("video,caption\n0.mp4,a ball\n2.mp4,a spring\n")

    class Encoder:
        latent_space = "toy"

        def embed_prompts(self, prompts):
            return torch.ones(len(prompts), 2, 4), torch.ones(len(prompts), 2, dtype=torch.bool)

        def encode_video(self, video):
            return torch.zeros(1, 16, 3, 4, 4)

    config = CacheConfig(
        out=tmp_path / "out",
        captions=tmp_path / "list.csv",
        backbone="toy",
        width=32,
        height=32,
        frames=9,
        fps=0,
        tokens=True,
    )
    cache_clips(sorted(listed_captions(config)), config, Encoder, Encoder, progress=quiet())
    found = [read_clip(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert [(clip.info.source, clip.info.caption, clip.info.caption_from) for clip in found] == [
        ("0.mp4", "a ball", "file"),
        ("2.mp4", "a spring", "file"),
    ]
    with pytest.raises(TrainingError, match="does not exist"):
        listed_captions(CacheConfig(out=tmp_path, captions=tmp_path / "no.csv"))


def test_a_lora_goes_on_from_a_file(tmp_path):
    _, path = finetune(settings(tmp_path, objectives=[]), progress=quiet())
    first = command.load_dit(config := settings(tmp_path, objectives=[], init=path))
    clips = batches.TrainingClips(config.data, batch=2, seed=0)
    command.make_task(config, first, clips, [], FeatureCache(tmp_path / "none"), None)
    file = load_file(path)
    found = {
        key.replace(".default.", "."): value for key, value in first.dit.named_parameters() if "lora_" in key
    }
    for key, value in lora_to_diffusers(file, "wan").items():
        torch.testing.assert_close(found[key], value)
    other = TuneConfig(rank=2, alpha=8)
    with pytest.raises(
        command.TrainingError, match="acts with alpha 64, the run's LoRA with 8; give that --alpha"
    ):
        finetune(
            settings(tmp_path, objectives=[], init=path, tune=other, out=tmp_path / "other"), progress=quiet()
        )
    with pytest.raises(command.TrainingError, match="give --rank 2"):
        finetune(
            settings(tmp_path, objectives=[], init=path, tune=TuneConfig(rank=3), out=tmp_path / "other"),
            progress=quiet(),
        )


def test_toy_clips_are_for_the_toy_backbone(tmp_path):
    with pytest.raises(TrainingError, match="not for wan"):
        finetune(FinetuneConfig(out=tmp_path, toy_clips=4), progress=quiet())
    with pytest.raises(TrainingError, match="or --toy-clips"):
        finetune(FinetuneConfig(out=tmp_path, backbone="toy"), progress=quiet())
