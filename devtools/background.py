"""A short training on real clips, in the background of the demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from .shell import BenchError, last_line, read_tail

ROOT = Path(__file__).resolve().parent.parent


def commands(templates: str, out: Path, run: Path, minutes: float, clips: int) -> list[list[str]]:
    """Caches `clips` of ComfyUI's template clips, then trains a predictor on them; its files lie in `run`."""
    cache = f"training cache --backbone toy --limit {clips}".split()
    train = f"training predictor --recipe toy --minutes {minutes} --every 100".split()
    return [
        [sys.executable, *cache, "--templates", templates, "--out", str(out / "cache")],
        [sys.executable, *train, "--cache", str(out / "cache"), "--out", str(run)],
    ]


class Training:
    """Caching real clips and training a predictor on them, in the background.

    templates: name pattern of the clips; out: folder of the log, the cache and the run.
    """

    def __init__(self, templates: str, out: Path, minutes: float, clips: int) -> None:
        self.log = out / "training.log"
        self.run = out / "predictor"
        shutil.rmtree(self.run, ignore_errors=True)
        steps = json.dumps(commands(templates, out, self.run, minutes, clips))
        # The second command follows the first; both give way to the server if the system knows priorities.
        script = "import json, os, subprocess, sys\nhasattr(os, 'nice') and os.nice(10)\n"
        script += "for command in json.loads(sys.argv[1]):\n    subprocess.call(command) == 0 or sys.exit(1)"
        # A process group of its own: `stop` ends the running command, too.
        windows = os.name == "nt"
        flags = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if windows else {"start_new_session": True}
        )
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script, steps],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                **flags,
            )

    def wait(self) -> list[Path]:
        """Files that the run made. Raises BenchError if it failed."""
        if self.process.wait() != 0:
            words = last_line(read_tail(self.log))
            raise BenchError(f"training on real clips failed: {words}. Log: {self.log}")
        return sorted(path for path in self.run.iterdir() if path.suffix in (".safetensors", ".png", ".csv"))

    def stop(self) -> None:
        """Ends the running command, if any."""
        if self.process.poll() is None:
            if os.name == "nt":
                self.process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()
