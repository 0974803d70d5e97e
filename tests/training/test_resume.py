"""Every training command, killed and stopped in the middle, ends bit for bit as an undisturbed run does."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked, to pay for imports once"
)
SIGKILL, STOPPED = -9, 130
"""Exit statuses."""
Run = Callable[..., int]


@dataclass(kw_only=True)
class Case:
    """A command at its smallest, and how it is interrupted."""

    argv: str
    """Its words; {data}, {raft} and {out} are filled in."""
    interruptions: tuple[tuple[str, int], ...] = (("kill", 3), ("kill writing", 2), ("stop", 3))
    """What happens to the processes before the last, one after another, and after how many optimiser steps of
    that process. Checkpoints are written every two steps, so a process killed after its third goes on from
    the second."""


TRAINER = "--steps 6 --batch 1 --validate-every 3 --save-every 2 --validation-clips 1 --no-tensorboard"
CASES = {
    "finetune": Case(
        argv=f"finetune --backbone toy --data {{data}} --out {{out}} {TRAINER} --rank 4 --dropout 0.1 --ema "
        f"0.9 --accumulate 2 "
        "--prompt-dropout 0.5 --warmup 3 --schedule cosine --learning-rate 1e-3 --held-out 0.25 "
        "--objectives 'drift weight=0.4 lag=2'",
    ),
    "motion head": Case(
        argv=f"motion-head --data {{data}} --out {{out}} {TRAINER} --limit 2 --held-out 0 --teacher "
        f"toy_videomae --raft {{raft}} "
        "--flow-height 128 --flow-width 128 --motion 4 --hidden 8",
    ),
    "toy teachers": Case(
        argv=f"toy-teachers --which vjepa2 --width 32 --layers 1 --out {{out}} --export {{out}}/files "
        f"{TRAINER}",
    ),
    "predictor": Case(
        argv="predictor --cache {data} --out {out} --recipe toy --width 8 --blocks 1 --batch 4 --steps 6 "
        "--every 2 --device cpu",
    ),
    "pila": Case(
        argv="pila --recipe toy --cache {data} --flow latent --out {out} --device cpu --observable-steps 2 "
        "--recovery-steps 4 "
        "--alpha-start 1 --impulse-start 2 --wave-start 3 --coupling-steps 4 --freeze-steps 2 --batch 1 "
        "--every 2 --held-out-clips 1",
        interruptions=(
            ("kill", 3),
            ("kill writing", 6),
            ("stop", 7),
        ),  # in stage A2, in B, and in C when all parts learn
    ),
    "grpo": Case(
        argv="grpo --backbone toy --toy-prompts 4 --eval-count 1 --frames 13 --group-size 4 "
        "--unique-sample-num-per-epoch 1 --num-inference-steps 4 --eval-num-inference-steps 2 --out {out} "
        "--rewards 'motion source=toy_predictor_order1' --watch --samples 0 --rank 2 --no-tensorboard "
        "--kl-beta 0.1 --ema 0.9 --steps 6 --batch 4 --validate-every 3 --save-every 2 --learning-rate 1e-3",
    ),
    "toyworld": Case(
        argv="toyworld --stage export --out {out} --export {out}/files --threads 1 --save-every 2 "
        "--text-steps 4 --vae-steps 4 "
        "--decoder-steps 4 --clips 2 --fit-clips 1 --batch 2 --base-steps 4",
        interruptions=(("kill", 3), ("kill writing", 4), ("stop", 5), ("kill", 4), ("stop", 2)),
    ),
}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command's words in a process of its own, interrupted as asked; returns its exit status."""
    server = Path(__file__).with_name("interrupted.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        bufsize=1,
    ) as process:

        def ask(argv: list[str], how: str = "", after: int = 0) -> int:
            process.stdin.write(json.dumps({"argv": argv, "how": how, "after": after}) + "\n")
            return int(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def files(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four cached clips of the toy world with frames and tokens, and a RAFT of random weights."""
    from torchvision.models.optical_flow import raft_small

    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    save_file(raft_small(weights=None).state_dict(), folder / "raft_small.safetensors")
    words = f"finetune --backbone toy --toy-clips 4 --out {folder} --steps 1 --held-out 0 --rank 1"
    words += " --no-export --no-tensorboard"
    assert run(words.split()) == 0
    return {"data": str(folder / "cache"), "raft": str(folder / "raft_small.safetensors")}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every file in a run's folder."""
    files = {path.relative_to(folder).as_posix(): load_file(path) for path in folder.rglob("*.safetensors")}
    return {f"{file}: {key}": value for file, state in files.items() for key, value in state.items()}


def logs(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of every log in a run's folder, without the clock."""
    found = {}
    for path in folder.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.relative_to(folder).as_posix()] = [
                {name: cell for name, cell in row.items() if name != "seconds"}
                for row in csv.DictReader(file)
            ]
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    name: str, run: Run, files: dict[str, str], tmp_path: Path
) -> None:
    case = CASES[name]

    def words(out: Path) -> list[str]:
        return [word.format(out=out, **files) for word in shlex.split(case.argv)]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(words(whole)) == 0
    for how, after in case.interruptions:
        assert run(words(parts), how, after) == (STOPPED if how == "stop" else SIGKILL), (how, after)
    assert run(words(parts)) == 0
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert not [key for key, value in expected.items() if not torch.equal(value, found[key])]
    assert logs(whole) == logs(parts) != {}
