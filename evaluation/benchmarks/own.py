"""Prompts of one's own: a text file or a CSV, judged by the measures that need no scorer; and the toy world,
judged by its laws.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from ..plan import Plan, Prompt
from ..scoring import Scoring, Spot
from ..video import read_frames
from .base import Benchmark, Column, Reading, captions, clip_score, file_stem


class Own(Benchmark):
    name = "own"
    title = "own prompts"
    prompts_from = "a text file with a prompt a line, or a CSV with a column caption"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        return [Prompt(id=str(number), text=row["caption"]) for number, row in enumerate(captions(source), 1)]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        return ()

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        return Spot(folder=self.folder(arm, run), name=f"{prompt.id}_{file_stem(prompt.text)[:150]}.mp4")

    def read(self, scoring: Scoring) -> Reading:
        return Reading(columns=())


class ToyWorld(Benchmark):
    """The toy world's own prompts: `--prompts N` asks for N of them."""

    name = "toyworld"
    title = "toy world"
    prompts_from = "a number of prompts"

    def prompts(self, source: Path, options: Mapping[str, Any]) -> list[Prompt]:
        from ...toyworld import WORLDS, sample

        try:
            count = int(str(source))
        except ValueError as error:
            raise EvaluationError(
                f"--prompts is {str(source)!r}; the toy world takes a number of prompts."
            ) from error
        each = -(-count // len(WORLDS))
        drawn = [
            (world, prompt)
            for world in WORLDS
            for prompt in dict.fromkeys(sample(world, 4 * each, 10_007)[1])
        ]
        by_world = {world: [prompt for name, prompt in drawn if name == world][:each] for world in WORLDS}
        mixed = [
            (world, by_world[world][place])
            for place in range(each)
            for world in WORLDS
            if place < len(by_world[world])
        ]
        return [
            Prompt(id=str(number), text=text, groups=(world,))
            for number, (world, text) in enumerate(mixed[:count], 1)
        ]

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        return (
            Column(key="law", title="law", scale=1, digits=3),
            Column(key="adherence", title="adherence", scale=1, digits=3),
            Column(key="toy_motion", title="dynamic degree of the toy world", scale=1, digits=3),
        )

    def spot(self, plan: Plan, arm: str, prompt: Prompt, run: int, index: int) -> Spot:
        return Spot(folder=self.folder(arm, run), name=f"{prompt.id}_{file_stem(prompt.text)[:150]}.mp4")

    def score(self, scoring: Scoring) -> None:
        """Nothing to run: the laws are read when the table is made."""

    def read(self, scoring: Scoring) -> Reading:
        import torch

        from ...toyworld import evaluate

        reading = Reading(columns=self.columns(scoring.plan))
        for record in scoring.records:
            frames = read_frames(scoring.manifest.file_of(record))
            clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255
            found = evaluate(clip, list(scoring.plan.prompt(record.prompt_id).groups), [record.prompt])
            values = {"law": float(found.law), "adherence": float(found.adherence)}
            reading.clips.append(clip_score(record, {**values, "toy_motion": float(found.dynamic_degree)}))
        return reading
