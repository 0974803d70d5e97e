"""Kills a run with SIGKILL at random moments, lets it end, and compares its weights with those of an
uninterrupted run.

python tests/training/finetune/kill_many.py --kills 20 --seed 0
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.loop.log import read_log
from latent_physics.training.loop.loop import train
from latent_physics.training.loop.task import Run


def the_run(out: Path, data: Path, steps: int) -> Run:
    """With everything that has a state: dropout, average, validation, checkpoints at odd steps."""
    return tiny_run.make_run(out, data, steps=steps, save_every=3, validate_every=10, ema=0.9)


def killed_run(out: Path, data: Path, kills: int, steps: int, seed: int = 0) -> int:
    """Starts the run in processes of its own and kills `kills` of them; the last one ends. Returns how many
    died in mid-run."""
    rng, died = random.Random(seed), 0
    command = [sys.executable, str(Path(__file__)), "--child", str(out), str(data), str(steps)]
    quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for kill in range(kills):
        process = subprocess.Popen(command, **quietly)
        wanted = (kill + rng.random()) / kills * steps * 0.9
        while process.poll() is None and (read_log(out / "log.csv") or [{"step": 0}])[-1]["step"] < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        died += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, **quietly)
    return died


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, metavar=("OUT", "DATA", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(the_run(Path(args.child[0]), Path(args.child[1]), int(args.child[2])))
        return 0
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "data").mkdir()
        data = tiny_run.clips(place / "data")
        died = killed_run(place / "killed", data, args.kills, args.steps, args.seed)
        train(the_run(place / "whole", data, args.steps))
        one, other = (load_file(place / name / "checkpoint.safetensors") for name in ("whole", "killed"))
        different = [key for key in one if not one[key].equal(other[key])]
    print(
        f"{died} of {args.kills} kills hit a running process; {len(different)} of {len(one)} tensors differ."
    )
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
