"""VideoREPA's loss (arXiv 2505.23656, eqs 3 to 6, and the settings of its published training) written again
from its description, in float64 and with every pair of tokens formed, against the objective `trd` as a recipe
builds it: value and gradient.

What its description says, step by step:
  the 18th block's tokens (counted from 1) go through Linear, SiLU, Linear, SiLU, Linear, each by itself;
  the tokens of the first latent frame are dropped, as the video's first frame is before the teacher sees it;
  time is doubled by linear interpolation (sample centres, borders held): 12 latent frames meet 24 tubelets of
  2 frames; a 3 x 3 convolution of stride 3 without padding brings 30 x 45 tokens to the teacher's 10 x 15; L
  = mean over all pairs of tokens, of one frame and of two, of relu(|cos_student - cos_teacher| - 0.1).
"""

from __future__ import annotations

import torch
from latent_physics.tests.training.finetune.test_objectives import build_one
from latent_physics.training.backbones import Activation
from latent_physics.training.objectives import parse
from latent_physics.training.objectives.base import StepView
from latent_physics.training.recipes import load_recipe
from latent_physics.training.tasks.finetune import FinetuneConfig

FRAMES, HEIGHT, WIDTH = 4, 6, 9
"""Of the student's tokens: the shape of CogVideoX's 13 x 30 x 45, small."""
CELLS = (2 * (FRAMES - 1), HEIGHT // 3, WIDTH // 3)
"""Of the teacher: the shape of VideoMAE's 24 x 10 x 15, small."""
CHANNELS, HIDDEN, TEACHER, MARGIN = 5, 8, 7, 0.1


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def projected(tokens: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens `B N C` -> the student's cells `B F' H' W' C'`, one loop for each step of the description."""
    x = silu(tokens @ weights["mlp.0.weight"].T + weights["mlp.0.bias"])
    x = silu(x @ weights["mlp.2.weight"].T + weights["mlp.2.bias"])
    x = x @ weights["mlp.4.weight"].T + weights["mlp.4.bias"]
    x = x.reshape(len(tokens), FRAMES, HEIGHT, WIDTH, TEACHER)
    kept = [x[:, frame] for frame in range(1, FRAMES)]
    doubled = []
    for frame in range(CELLS[0]):
        place = min(max((frame + 0.5) / 2 - 0.5, 0), len(kept) - 1)
        before = min(int(place), len(kept) - 2)
        share = place - before
        doubled.append((1 - share) * kept[before] + share * kept[before + 1])
    kernel, bias = weights["resize.weight"][:, :, 0], weights["resize.bias"]
    rows = []
    for frame in doubled:
        for y in range(CELLS[1]):
            for x0 in range(CELLS[2]):
                patch = frame[:, 3 * y : 3 * y + 3, 3 * x0 : 3 * x0 + 3]
                rows.append(torch.einsum("byxi,oiyx->bo", patch, kernel) + bias)
    return torch.stack(rows, dim=1)


def relation_distillation(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(the loss, the number of pairs below the margin), pair by pair."""
    total, below, count = 0.0, 0, 0
    for s, t in zip(student, teacher):
        for i in range(len(s)):
            for j in range(len(s)):
                ours, theirs = (x[i] @ x[j] / (x[i].norm() * x[j].norm()) for x in (s, t))
                distance = (ours - theirs).abs() - MARGIN
                total, below, count = total + torch.relu(distance), below + int(distance <= 0), count + 1
    return total / count, below


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Student tokens, alike enough that some pairs lie below the margin, and teacher features `B C F H W`."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, FRAMES * HEIGHT * WIDTH, CHANNELS)
    tokens = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tokens, torch.randn(2, TEACHER, *CELLS, generator=generator, dtype=torch.float64) + 2


def test_the_recipes_objective_is_videorepas_loss_to_the_last_digit():
    objective = build_one(
        f"trd block=18 hidden={HIDDEN}", width=CHANNELS, blocks=30, channels=TEACHER
    ).double()
    assert objective.blocks == (18,)
    assert (objective.settings.margin, objective.settings.stride, objective.settings.weight) == (
        MARGIN,
        3,
        0.5,
    )
    tokens, teacher = scene()
    results = []
    for ours in (True, False):
        leaf = tokens.clone().requires_grad_(True)
        wanted = [leaf, *objective.projector.parameters()]
        if ours:
            tap = Activation(tokens=leaf, grid=(FRAMES, HEIGHT, WIDTH))
            latent = torch.zeros(2, 4, FRAMES, 2 * HEIGHT, 2 * WIDTH)
            features = {objective.teachers[0].key: {"features": teacher}}
            view = StepView(latent=latent, x0=latent, signal=torch.ones(2), taps={18: tap}, features=features)
            value = objective(view)
        else:
            value, below = relation_distillation(
                projected(leaf, dict(objective.projector.named_parameters())),
                teacher.flatten(2).transpose(1, 2),
            )
            pairs = 2 * (CELLS[0] * CELLS[1] * CELLS[2]) ** 2
            assert 0.05 * pairs < below < 0.95 * pairs
        results.append((value.detach(), torch.autograd.grad(value, wanted)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    for found, expected in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    assert not results[0][1][0][:, : HEIGHT * WIDTH].any()  # the first latent frame is out


def test_the_recipes_carry_the_scripts_numbers():
    """VideoREPA's training script, and what the papers that build on it state; the teacher is VideoMAEv2-B in
    all of them."""
    for name, steps, rate in (("videorepa-2b", 4000, 2e-6), ("videorepa-5b", 2000, 1e-4), ("tsa-2b", 4000,
    2e-6),
                              ("mtsa-2b", 4000, 2e-6), ("moalign-2b", 4000, 2e-6), ("repa-2b", 4000,
                              2e-6)):  # fmt: skip
        recipe = load_recipe(name, FinetuneConfig)
        t = recipe.trainer
        assert (t.steps, t.learning_rate, t.warmup, t.weight_decay, t.max_grad_norm) == (
            steps,
            rate,
            100,
            1e-4,
            1.0,
        ), name
        assert (t.beta1, t.beta2, t.batch * t.accumulate) == (0.9, 0.95, 32), name
        (need,) = parse.needed_teachers(recipe.objectives)
        assert need.weights == "OpenGVLab/VideoMAEv2-Base", name
        ((_, settings),) = map(parse.parse, recipe.objectives)
        assert (settings.block, settings.weight, settings.stride) == (18, 0.5, 3), name
    tune = load_recipe("videorepa-5b", FinetuneConfig).tune
    assert (tune.mode, tune.rank, tune.alpha) == ("lora", 128, 64)
