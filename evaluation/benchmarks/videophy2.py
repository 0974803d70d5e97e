"""VideoPhy-2 (github.com/Hritikbansal/videophy, VIDEOPHY2, MIT): an auto-rater gives 1 to 5 for adherence and
physics.

Its script writes its CSV only at the end, so clips are scored in portions with an output each: a crash costs
one portion. The script takes the first number word or digit of the answer and writes 0 where there is none;
such rows are counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..files import read_csv, write_csv
from ..manifest import Record
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from .base import NAN, Benchmark, ClipScore, Column, Reading, captions, clip_score, file_stem
from .videophy import upsampled

INFER = "VIDEOPHY2/inference.py"
PORTION = 32
"""Clips of one call; loading the rater takes about as long as scoring this number."""
HIGH = 4
"""Scores from here on count as adherent, and as physical."""


class VideoPhy2(Benchmark):
    name = "videophy2"
    title = "VideoPhy-2"
    prompts_from = "a CSV with a column caption, or a text file with a caption a line"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        rows = captions(source)
        used = upsampled(rows, options)
        rules: dict[str, list[str]] = {}
        if options.get("rules"):
            for row in read_csv(Path(options["rules"]), ["caption", "rule"]):
                rules.setdefault(row["caption"], []).append(row["rule"])
        return [
            Prompt(
                id=str(number),
                text=row["caption"],
                used=used[number - 1],
                rules=tuple(rules.get(row["caption"], ())),
            )
            for number, row in enumerate(rows, 1)
        ]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        rule = (
            [Column(key="rule", title="rules kept")] if any(prompt.rules for prompt in plan.prompts) else []
        )
        return (
            Column(key="joint", title="joint"),
            Column(key="sa", title="SA >= 4"),
            Column(key="pc", title="PC >= 4"),
            *rule,
            Column(key="sa_mean", title="SA mean", scale=1, digits=2),
            Column(key="pc_mean", title="PC mean", scale=1, digits=2),
        )

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        return Spot(folder=self.folder(arm, run), name=f"{file_stem(prompt.text)}.mp4")

    def score(self, scoring: Scoring) -> None:
        scorer = scoring.installed()
        root = scorer.place("root")
        checkpoint = scorer.place("checkpoint")
        for (arm, run), records in scoring.runs().items():
            folder = scoring.results / self.folder(arm, run)
            for task in tasks(scoring.plan):
                rows, header = rows_of(scoring, records, task)
                for number, portion in enumerate(portions(rows), 1):
                    name = folder / f"{task}_{number:03}"
                    output = name.with_suffix(".out.csv")
                    if complete(output, portion, header):
                        continue
                    given = name.with_suffix(".in.csv")
                    write_csv(given, header, portion)
                    command = [
                        root / INFER,
                        "--input_csv",
                        given,
                        "--output_csv",
                        output,
                        "--checkpoint",
                        checkpoint,
                    ]
                    label = (
                        f"{self.title}, {folder.name}: {task}, portion {number} of {-(-len(rows) // PORTION)}"
                    )
                    scoring.call(label, [*command, "--task", task], folder / "log.txt", root / "VIDEOPHY2")
                    if not complete(output, portion, header):
                        raise EvaluationError(
                            f"the scorer wrote no score for every clip of {output.name}; see"
                            f" {folder}/log.txt."
                        )

    def read(self, scoring: Scoring) -> Reading:
        reading = Reading(columns=self.columns(scoring.plan))
        unparsed = unscored = 0
        for (arm, run), records in scoring.runs().items():
            folder = scoring.results / self.folder(arm, run)
            found = {task: outputs(folder, task) for task in tasks(scoring.plan)}
            for record in records:
                clip = self._clip(record, str(scoring.clip(record)), found)
                if clip is None:
                    unscored += 1
                    continue
                unparsed += sum(
                    not 1 <= score <= 5
                    for task in ("sa", "pc")
                    for score in found[task][str(scoring.clip(record))]
                )
                reading.clips.append(clip)
        if not reading.clips:
            raise EvaluationError(
                f"{scoring.results} holds no scores of VideoPhy-2: run `latent-physics evaluate score` first."
            )
        if unscored:
            reading.notes.append(f"{unscored} clips have no VideoPhy-2 score and are left out.")
        if unparsed:
            reading.notes.append(
                f"VideoPhy-2: {unparsed} answers held no number; the scorer writes 0 for them, and so they"
                " count."
            )
        reading.notes.append(
            "VideoPhy-2's rater disagrees with people (Wan 14B: 32.6 by people, 23.0 by it); use differences"
            " only."
        )
        return reading

    def _clip(
        self, record: Record, path: str, found: Mapping[str, Mapping[str, list[float]]]
    ) -> ClipScore | None:
        """One clip's numbers; None if a task has no score for it."""
        if any(path not in found[task] for task in ("sa", "pc")):
            return None
        sa, pc = found["sa"][path][0], found["pc"][path][0]
        values = {"sa": float(sa >= HIGH), "pc": float(pc >= HIGH), "sa_mean": sa, "pc_mean": pc}
        values["joint"] = min(values["sa"], values["pc"])
        judged = [
            score for score in found.get("rule", {}).get(path, []) if score in (0, 1)
        ]  # 2: cannot be judged
        values["rule"] = sum(judged) / len(judged) if judged else NAN
        return clip_score(record, values)


def tasks(plan: Plan) -> tuple[str, ...]:
    """Tasks of the rater; rules only where the prompts came with some."""
    return ("sa", "pc", "rule") if any(prompt.rules for prompt in plan.prompts) else ("sa", "pc")


def rows_of(scoring: Scoring, records: list[Record], task: str) -> tuple[list[list[str]], list[str]]:
    """Rows of a task's input and their header."""
    if task == "rule":
        rules = [(record, rule) for record in records for rule in scoring.plan.prompt(record.prompt_id).rules]
        return [[str(scoring.clip(record)), rule] for record, rule in rules], ["videopath", "rule"]
    return [[record.prompt, str(scoring.clip(record))] for record in records], ["caption", "videopath"]


def portions(rows: list[list[str]]) -> Iterator[list[list[str]]]:
    """`rows` in groups of `PORTION`."""
    for start in range(0, len(rows), PORTION):
        yield rows[start : start + PORTION]


def complete(output: Path, portion: list[list[str]], header: list[str]) -> bool:
    """Whether an output holds exactly the rows of a portion, each with a score."""
    if not output.is_file():
        return False
    rows = read_csv(output, [*header, "score"])
    return [[row[name] for name in header] for row in rows] == portion and all(row["score"] for row in rows)


def outputs(folder: Path, task: str) -> dict[str, list[float]]:
    """Scores by video of all of a task's outputs."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob(f"{task}_*.out.csv")):
        for row in read_csv(path, ["videopath", "score"]):
            try:
                found.setdefault(row["videopath"], []).append(float(row["score"]))
            except ValueError as error:
                raise EvaluationError(
                    f"{path} holds the score {row['score']!r}, which is no number."
                ) from error
    return found
