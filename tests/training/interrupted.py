"""Runs training commands that interrupt themselves, each in a forked process: imports are paid once.

Reads JSON lines {"argv": ["predictor", ...], "how": "kill", "after": 5} and answers each with the exit status
of its process, negative for the signal that ended it. `how` is "kill" (SIGKILL right after that optimiser
step), "kill writing" (SIGKILL inside the next write of a file, before it has its name), "stop" (SIGTERM,
which asks the run to stop) or "" (nothing happens).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
from typing import Any

import accelerate
import diffusers
import matplotlib.figure
import peft
import torch
import transformers
import tyro
from latent_physics.training.__main__ import main
from torch.optim.optimizer import register_optimizer_step_post_hook

PRELOADED = (accelerate, matplotlib.figure, peft, tyro)
PRELOADED_LAZILY = (
    diffusers.AutoencoderKLWan, diffusers.WanTransformer3DModel, transformers.VideoMAEModel,
    transformers.VJEPA2Model,
)  # fmt: skip


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(how: str, after: int) -> None:
    """Has this process interrupt itself once its optimisers have taken `after` steps."""
    steps = itertools.count(1)

    def count(*_: Any) -> None:
        if next(steps) != after:
            return
        if how == "kill writing":
            os.fsync = kill
        else:
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)

    if how:
        register_optimizer_step_post_hook(count)


def run(argv: list[str], how: str, after: int) -> int:
    """The exit status of one command in a process of its own."""
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # the answers alone go to the real standard output
        status = 1
        try:
            torch.set_num_threads(1)
            interrupt(how, after)
            status = main(argv)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(run(**json.loads(line)), flush=True)
