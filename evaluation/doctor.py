"""Scorers that are usable on this machine, and the lacks of the others."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .benchmarks import find_benchmark
from .benchmarks.phygenbench import PhyGenBench
from .benchmarks.physics_iq import DATA
from .errors import EvaluationError
from .scoring import Scorer


@dataclass(frozen=True, kw_only=True)
class Need:
    """Needs of a scorer beside its interpreter."""

    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Paths inside its clone."""
    checkpoint: bool = False
    data: bool = False
    programs: tuple[str, ...] = ()


MPLUG = ("torch", "transformers", "pandas", "decord", "peft")
NEEDS = {
    "physics-iq": Need(
        packages=("cv2", "pandas", "numpy", "joblib"),
        files=("physiq/run_physics_iq.py",),
        data=True,
        programs=("ffprobe",),
    ),
    "videophy": Need(
        packages=MPLUG,
        files=("utils/prepare_data.py", "videocon/training/pipeline_video/entailment_inference.py"),
        checkpoint=True,
    ),
    "videophy2": Need(packages=MPLUG, files=("VIDEOPHY2/inference.py",), checkpoint=True),
    "phygenbench": Need(),
    "vbench": Need(packages=("vbench", "torch", "torchvision", "decord")),
    "vbench2": Need(packages=("torch", "decord")),
}
PROBE = """
import importlib.util, json, sys
names = json.loads(sys.argv[1])
found = {name: importlib.util.find_spec(name) is not None for name in names}
cuda = None
if found.get("torch") and sys.argv[2] == "cuda":
    import torch
    cuda = torch.cuda.is_available()
print(json.dumps({"python": sys.version.split()[0], "missing": [n for n in names if not found[n]], "cuda":
cuda}))
"""


def lacking(scorer: Scorer) -> list[str]:
    """Lacks of a scorer, a sentence each; nothing for one that can run.

    Raises EvaluationError for an unknown name.
    """
    find_benchmark(scorer.name)
    need = NEEDS.get(scorer.name)
    if need is None:
        raise EvaluationError(f"{scorer.name} needs no scorer; take [{scorer.name}] out of the TOML.")
    if scorer.name == PhyGenBench.name:
        return [
            "its published scripts do not run as they are; the reader takes the files of your repaired copies"
        ]
    if not Path(scorer.python).is_file():
        return [f"there is no interpreter at {scorer.python}"]
    wanted = [("root", path) for path in need.files]
    wanted += [("checkpoint", "")] if need.checkpoint else []
    wanted += [("data", DATA)] if need.data else []
    found = []
    for setting, below in wanted:
        try:
            scorer.place(setting, below)
        except EvaluationError as error:
            found.append(str(error).rstrip("."))
    found += [
        f"the program {name} is not on the PATH" for name in need.programs if shutil.which(name) is None
    ]
    return found + of_environment(scorer, need)


def of_environment(scorer: Scorer, need: Need) -> list[str]:
    """Modules that the scorer's interpreter cannot import, and a GPU that it cannot see."""
    packages = (*need.packages, "vbench2") if scorer.name == "vbench2" and not scorer.root else need.packages
    command = [scorer.python, "-c", PROBE, json.dumps(packages), scorer.device.partition(":")[0]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{scorer.python} does not run ({error})"]
    except (ValueError, IndexError):
        return [f"{scorer.python} fails: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}"]
    found = [
        f"{name} is not installed for {scorer.python} (Python {facts['python']})" for name in facts["missing"]
    ]
    if scorer.device.startswith("cuda") and facts["cuda"] is False:
        found.append('its torch sees no GPU; write device = "cpu" where the scorer allows it')
    return found


def report(scorers: dict[str, Scorer]) -> tuple[str, bool]:
    """A line per benchmark that has a scorer, and whether every configured one is usable.

    Raises EvaluationError for a scorer of no benchmark.
    """
    lines, fine = [], True
    for name in [*NEEDS, *(name for name in scorers if name not in NEEDS)]:
        if name not in scorers:
            lines.append(f"{name}: not configured")
            continue
        missing = lacking(scorers[name])
        fine &= not missing
        lines.append(f"{name}: {'; '.join(missing) or 'usable'}")
    return "\n".join(lines), fine
