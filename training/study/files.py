"""Files that a study's arms need, each made by a command of the pack in a process of its own: a predictor, an
adapter, a reinforced transformer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..console import TrainingError
from ..tasks import predictor
from ..tasks.pila import columns
from .corrections import file_of, files_of
from .kept import keep, kept
from .plan import CLIPS, SEED, ArmPlan, FilePlan, Plan

TRAINING = Path(__file__).resolve().parents[1]
"""What `python` runs as `latent-physics`."""
RESULTS = {"predictor": predictor.EXPORT, "pila": columns.EXPORT, "grpo": "*-full.safetensors"}
"""By command: what it leaves in its folder."""
STOPPED = 130
"""Exit status of a command that the user stopped."""


class PlanFiles:
    """A plan's files, in a folder: which arm needs which, and where each is."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder

    def needed(self, arm: ArmPlan) -> list[FilePlan]:
        """Files of the plan that an arm asks for."""
        return [file for file in self.plan.files if any(file.word in text for text in texts_of(arm))]

    def path(self, file: FilePlan, seed: int) -> Path:
        """The file of a seed."""
        return self.folder / f"{file.name}{f'-seed{seed}' if file.by_seed else ''}.safetensors"

    def filled(self, text: str, seed: int) -> str:
        """A text of the plan with its seed and its files in their places."""
        for file in self.plan.files:
            text = text.replace(file.word, str(self.path(file, seed)))
        return text.replace(SEED, str(seed))

    def corrections(self, arm: ArmPlan, seed: int) -> list[str]:
        """An arm's corrections with their files."""
        return [self.filled(text, seed) for text in arm.corrections]

    def of_arm(self, arm: ArmPlan, seed: int) -> list[Path]:
        """Files that an arm needs for one seed, whoever makes them."""
        dit = [file_of(self.filled(arm.dit, seed))] if arm.dit else []
        return dit + files_of(self.corrections(arm, seed))

    def missing(self, arm: ArmPlan, seed: int) -> list[Path]:
        """Those that are not there and that the plan does not make."""
        made = [self.path(file, seed) for file in self.needed(arm)]
        return [path for path in self.of_arm(arm, seed) if path not in made and not path.is_file()]

    def by_seed(self, arm: ArmPlan) -> bool:
        """Whether an arm that is not trained has something of each seed."""
        return any(SEED in text for text in texts_of(arm)) or any(file.by_seed for file in self.needed(arm))

    def jobs(self, arms: Sequence[ArmPlan]) -> Iterator[tuple[FilePlan, int]]:
        """Files that some arms need, in the plan's order, each with the seeds that it is made for."""
        asked = [file.name for arm in arms for file in self.needed(arm)]
        for file in self.plan.files:
            if file.name in asked:
                yield from ((file, seed) for seed in self.plan.seeds[: None if file.by_seed else 1])


def texts_of(arm: ArmPlan) -> list[str]:
    """Texts of an arm that may name files."""
    return [arm.dit or "", *arm.corrections]


def make_file(file: FilePlan, path: Path, seed: int, clips: Path | None, threads: int) -> bool:
    """Runs the file's command until `path` is there, in a folder beside it; returns whether it is.

    clips: the folder that "{clips}" stands for, None where nothing asks for it. Raises TrainingError where
    the command fails, and where the file was made with other arguments.
    """
    words = [word.replace(SEED, str(seed)).replace(CLIPS, str(clips)) for word in file.arguments]
    settings, basis = path.with_suffix(".json"), {"command": file.command, "arguments": file.arguments}
    if kept(settings, basis) is None:
        if settings.is_file():
            raise TrainingError(
                f"{path} was made with other arguments; give another --out, or delete it with what stands "
                f"beside it."
            )
        keep(settings, {}, basis)
    if path.is_file():
        return True
    folder = path.with_suffix("")
    threading = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    command = [sys.executable, str(TRAINING), file.command, *words, "--out", str(folder)]
    status = subprocess.run(command, env={**os.environ, **threading}, check=False).returncode
    if status == STOPPED:
        return False
    made = next(folder.glob(RESULTS[file.command]), None)
    if status or made is None:
        raise TrainingError(
            f"latent-physics {file.command} ended with status {status} and the file {file.name!r} is not "
            f"made; the reason stands above."
        )
    os.replace(made, path)
    return True
