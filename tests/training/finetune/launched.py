"""One of the processes that a launch by config file starts: a tiny run on the CPU.

Arguments: the folder of the run, the clips, steps, "lora" or "full". Prints what it was part of.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.loop.loop import train

if __name__ == "__main__":
    out, data, steps, mode = sys.argv[1:]
    torch.set_num_threads(1)
    run = tiny_run.make_run(
        Path(out),
        Path(data),
        steps=int(steps),
        batch=1,
        ema=0.5,
        save_every=1,
        tune=TuneConfig(mode=mode, rank=4),
    )
    if not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}.isdisjoint(os.environ):
        # accelerate shards between GPUs only: it is told that these CPU processes are such. What shards is
        # the real thing.
        PartialState._prepare_backend = lambda self, *arguments, **options: (
            "gloo",
            DistributedType.MULTI_GPU,
        )
        run.accelerator = Accelerator()
    train(run)
    sharded = any(type(value).__name__ == "DTensor" for value in run.task.module.parameters())
    state = run.accelerator.state
    told = (
        f"{state.distributed_type.value} {state.process_index} of {state.num_processes}, sharded: {sharded}"
    )
    print(f"{told}\n", end="", flush=True)  # one write: the processes share the output
