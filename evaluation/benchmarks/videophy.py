"""VideoPhy (github.com/Hritikbansal/videophy, MIT): VideoCon-Physics scores semantic adherence and physical
commonsense.

Its inference script appends rows `videopath,template,score` without a header and flushes each batch, so a run
that crashed is resumed with the rows that are left. score = P(Yes) / (P(Yes) + P(No)).

Two ways to average are in use and differ: the authors average raw scores (issue 5 of the repository),
VideoREPA and most papers after it count scores of at least 0.5. Both are read; the columns say which is
which.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...methods.weights import write_atomically
from ..errors import EvaluationError
from ..files import read_csv, read_lines, write_csv
from ..manifest import Record
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import NAN, Benchmark, Column, Reading, captions, clip_score, file_stem

TASKS = {"sa": "sa_testing.csv", "pc": "physics_testing.csv"}
"""Task -> file that the repository's prepare_data.py makes for it."""
STATES = ("solid_solid", "solid_fluid", "fluid_fluid")
PREPARE = "utils/prepare_data.py"
INFER = "videocon/training/pipeline_video/entailment_inference.py"
THRESHOLD = 0.5


class VideoPhy(Benchmark):
    name = "videophy"
    title = "VideoPhy"
    prompts_from = "a CSV with a column caption (and states_of_matter), or a text file with a caption a line"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        rows = captions(source)
        states = {row["caption"]: row.get("states_of_matter", "") for row in rows}
        if options.get("states"):
            reference = read_csv(Path(options["states"]), ["caption", "states_of_matter"])
            states |= {row["caption"]: row["states_of_matter"] for row in reference}
        used = upsampled(rows, options)
        return [
            Prompt(
                id=str(number),
                text=row["caption"],
                used=used[number - 1],
                groups=state_of(states[row["caption"]]),
            )
            for number, row in enumerate(rows, 1)
        ]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        found = [
            Column(key="sa", title="SA >= 0.5"),
            Column(key="pc", title="PC >= 0.5"),
            Column(key="joint", title="joint >= 0.5"),
            Column(key="sa_mean", title="SA mean"),
            Column(key="pc_mean", title="PC mean"),
        ]
        for state in STATES:
            if any(state in prompt.groups for prompt in plan.prompts):
                words = state.replace("_", "-")
                found += [Column(key=f"{task}:{state}", title=f"{task.upper()} {words}") for task in TASKS]
        return tuple(found)

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        return Spot(folder=self.folder(arm, run), name=f"{file_stem(prompt.text)}.mp4")

    def score(self, scoring: Scoring) -> None:
        scorer = scoring.installed()
        root = scorer.place("root")
        checkpoint = scorer.place("checkpoint")
        for (arm, run), records in scoring.runs().items():
            folder = scoring.results / self.folder(arm, run)
            rows = [[str(scoring.clip(record)), record.prompt] for record in records]
            write_csv(folder / "input.csv", ["videopath", "caption"], rows)
            log = folder / "log.txt"
            prepare = [root / PREPARE, "--input_csv", folder / "input.csv", "--output_folder", folder]
            scoring.call(f"{self.title}, {folder.name}: templates", prepare, log, root)
            for task, template in TASKS.items():
                self._infer(scoring, folder, task, template, checkpoint)

    def _infer(self, scoring: Scoring, folder: Path, task: str, template: str, checkpoint: Path) -> None:
        """Scores the clips that have no row yet."""
        root = Path(scoring.installed().root)
        output, left = folder / f"{task}.csv", folder / f"{task}_left.csv"
        todo = read_csv(folder / template, ["videopath", "caption"])
        known = scores(output)
        keep_rows(output, {row["videopath"] for row in todo} & known.keys())
        todo = [row for row in todo if row["videopath"] not in known]
        if not todo:
            return
        write_csv(left, ["videopath", "caption"], [[row["videopath"], row["caption"]] for row in todo])
        command = [root / INFER, "--input_csv", left, "--output_csv", output, "--checkpoint", checkpoint]
        scoring.call(
            f"{self.title}, {folder.name}: {task}, {len(todo)} clips", command, folder / "log.txt", root
        )
        lacking = [row for row in todo if row["videopath"] not in scores(output)]
        if lacking:
            raise EvaluationError(
                f"the scorer left {len(lacking)} of {len(todo)} clips of {folder.name} without a {task}"
                " score; see its log.txt."
            )

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        unscored = 0
        for (arm, run), records in scoring.runs().items():
            folder = scoring.results / self.folder(arm, run)
            found = {task: scores(folder / f"{task}.csv") for task in TASKS}
            for record in records:
                path = str(scoring.clip(record))
                values = [found[task].get(path, NAN) for task in TASKS]
                if any(value != value for value in values):
                    unscored += 1
                    continue
                reading.clips.append(clip_score(record, numbers(record, scoring.plan, *values)))
        if not reading.clips:
            raise EvaluationError(
                f"{scoring.results} holds no scores of VideoPhy: run `latent-physics evaluate score` first."
            )
        if unscored:
            reading.notes.append(f"{unscored} clips have no VideoPhy score and are left out.")
        reading.notes.append(
            "VideoPhy: >= 0.5 is VideoREPA's way, mean the authors' way; compare like with like."
        )
        return reading


def numbers(record: Record, plan: Plan, sa: float, pc: float) -> dict[str, float]:
    """Both aggregations of one clip's raw scores, and those of its states of matter."""
    share = {"sa": float(sa >= THRESHOLD), "pc": float(pc >= THRESHOLD)}
    values = {**share, "joint": min(share.values()), "sa_mean": sa, "pc_mean": pc}
    for state in plan.prompt(record.prompt_id).groups:
        values |= {f"{task}:{state}": value for task, value in share.items()}
    return values


def scores(path: Path) -> dict[str, float]:
    """Score by video of a headerless output; a row that a crash cut off is not counted.

    The last row of a video counts.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    found = {}
    for videopath, _, value in rows:
        try:
            found[videopath] = float(value)
        except ValueError:
            continue
    return found


def keep_rows(path: Path, videos: set[str]) -> None:
    """Rewrites an output with whole rows of `videos` alone: a torn last row would swallow the first that is
    appended.
    """
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row[0]: row for row in csv.reader(file) if len(row) == 3 and row[0] in videos}
    text = io.StringIO()
    csv.writer(text).writerows(rows.values())
    write_atomically(path, text.getvalue().encode())


def upsampled(rows: list[dict[str, str]], options: Mapping[str, Any]) -> list[str]:
    """Prompts given to the model instead of the captions: a column of the CSV, or a text file with as many
    lines.
    """
    if options.get("prompt_column"):
        column = options["prompt_column"]
        if column not in rows[0]:
            raise EvaluationError(f"the prompt file has no column {column!r}; it has {', '.join(rows[0])}.")
        return [row[column] for row in rows]
    if options.get("upsampled"):
        lines = read_lines(Path(options["upsampled"]))
        if len(lines) != len(rows):
            raise EvaluationError(
                f"{options['upsampled']} has {len(lines)} lines for {len(rows)} prompts; it needs one each."
            )
        return lines
    return [""] * len(rows)


def state_of(text: str) -> tuple[str, ...]:
    """States of matter as the repository spells them; nothing for other words."""
    name = text.strip().lower().replace("-", "_").replace(" ", "_")
    return (name,) if name in STATES else ()
