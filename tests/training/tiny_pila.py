"""A cheap frozen backbone, a few random clips and runs of PILA's training on them: seconds on one core."""

from __future__ import annotations

import torch
from latent_physics.methods.lamo import pool_tokens
from latent_physics.methods.pila import PilaConfig
from latent_physics.training.tasks.pila.data import Example, PilaClips
from latent_physics.training.tasks.pila.settings import PilaTraining
from latent_physics.training.tasks.pila.stages import FULL
from latent_physics.training.tasks.pila.task import PilaRun

SMALL = PilaConfig(channels=4, hidden=8, blocks=1, head_width=8, cond_dim=6)
QUICK = PilaTraining(
    observable_steps=2, recovery_steps=6, alpha_start=1, impulse_start=2, wave_start=4, coupling_steps=4,
    freeze_steps=2,
    batch=2, learning_rate=1e-3, every=3, held_out_clips=2, physics_warmup=2, condition_warmup=2,
)  # fmt: skip


class FrozenField:
    """A backbone whose velocity is a fixed linear map: cheap, and wrong in a way that a correction can
    learn."""

    family, prediction, latent_space, temporal_stride = "wan", "flow", "toy", 4
    device = torch.device("cpu")

    def predict(self, noisy, t, tokens, mask=None):
        assert not torch.is_grad_enabled()
        words = tokens.sum(dim=(1, 2)) / 100  # of each clip by itself, however the prompts are filled up
        return 0.5 * noisy + (0.1 * t + words).view(-1, 1, 1, 1, 1)

    def pool(self, tokens, mask):
        return pool_tokens(tokens, mask)

    def decode_latent(self, latent):
        frames = 4 * (latent.shape[2] - 1) + 1
        return torch.nn.functional.interpolate(
            latent[:, :3], (frames, 8 * latent.shape[3], 8 * latent.shape[4])
        ).sigmoid()


def clips(count=12, size=(5, 8, 7)):
    def load(index):
        generator = torch.Generator().manual_seed(index)
        labels = torch.zeros(8)
        labels[index % 8] = 1.0
        frames, height, width = size
        return Example(
            latent=torch.randn(4, *size, generator=generator),
            tokens=torch.randn(1 + index % 3, 6, generator=generator),
            cond=torch.randn(6, generator=generator),
            labels=labels,
            flow=0.3 * torch.randn(2, frames - 1, height, width, generator=generator),
            confidence=torch.ones(1, frames - 1, height, width),
        )

    names = [f"clip {i}" for i in range(count)]
    return PilaClips(names=names, keys=names, latent_space="toy", channels=4, cond_dim=6, load=load)


def run(folder=None, config=QUICK, adapter=SMALL, accelerator=None, method=FULL):
    return PilaRun(FrozenField(), clips(), config, adapter, folder, accelerator, method)


def begin(training, stage):
    """Puts a run before the first step of a stage; returns that step's number."""
    names = [phase.name for phase in training.loop.phases]
    training.loop.step = sum(phase.steps for phase in training.loop.phases[: names.index(stage)])
    training.loop._begin_phase()
    return training.loop.step


def flat(state):
    return torch.cat([value.flatten().double() for _, value in sorted(state.items())])
