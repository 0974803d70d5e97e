"""Tables, plots and sheets of a study, written into its folder."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from ...methods.weights import write_atomically
from ...toyworld.statistics import Effect, crossed_difference, holm
from ...toyworld.worlds import WORLDS
from ..console import saving
from .frames import ROWS
from .gate import Limits
from .gate import table as gate_table
from .plan import BASE, SAMPLED, ArmPlan, Plan
from .readouts import Measures
from .results import Results
from .sampling import SCORES
from .strips import write_sheet
from .study import Study

ALIGNMENT, SPEED, MOTION = "alignment", "steps to equal loss", "dynamic_degree"
LEVEL = 0.05

Trainings = Sequence[Measures]
"""Measures of an arm, one of each training."""


def write_report(study: Study) -> str:
    """Writes tables.md, effects.png and the sheets; returns the tables' text. Raises TrainingError."""
    text = tables(study.plan, study.results)
    with saving("tables.md", "the measures are safe"):
        study.out.mkdir(parents=True, exist_ok=True)
        write_atomically(study.out / "tables.md", (text + "\n").encode())
        if panels := tested(study.plan, study.results):
            write_atomically(study.out / "effects.png", draw_effects(panels))
    for regime in study.results.found:
        strips = list(strips_of(study, regime))
        if strips:
            write_sheet(study.out / f"sheet-{regime}.png", strips)
    return text


def tables(plan: Plan, results: Results) -> str:
    """All of the study as Markdown. The same results give the same text."""
    parts = ["### The gate", gate_table(results.readings, Limits())] if results.readings else []
    if results.left_out:
        parts += [
            "### Not comparable",
            "\n".join(f"- {arm}: {why}." for arm, why in results.left_out.items()),
        ]
    for regime, found in results.found.items():
        title = regime if regime == SAMPLED else f"{regime}: {about_regime(plan, regime)}"
        parts += [f"### {title[0].upper()}{title[1:]}", *regime_tables(plan, regime, found)]
    return "\n\n".join(parts)


def about_regime(plan: Plan, name: str) -> str:
    """A regime in words."""
    regime = next(regime for regime in plan.regimes if regime.name == name)
    start = "fresh weights" if regime.scratch else "the base"
    wrong = "the base's share" if regime.wrong is None else f"{regime.wrong:.0%}"
    return (
        f"{regime.steps} steps from {start} on {regime.clips} clips a training, {wrong} of them with "
        f"corrupted dynamics; trainings an arm: {len(plan.seeds)}"
    )


def control_of(plan: Plan, regime: str) -> str:
    """The row that a regime's others are compared with."""
    return BASE.name if regime == SAMPLED else plan.control


def partner_of(plan: Plan, regime: str, arm: str) -> str:
    """The row that an arm is compared with."""
    named = next((other.against for other in plan.arms if other.name == arm), None)
    return named or control_of(plan, regime)


def clips_of(plan: Plan, arm: str) -> list[int] | None:
    """Numbers of the sampled clips that count for an arm, which are of the worlds in turn; None for all."""
    named = next((other.worlds for other in plan.arms if other.name == arm), [])
    turn = list(WORLDS)
    return [n for n in range(plan.prompts) if turn[n % len(turn)] in named] if named else None


def regime_tables(plan: Plan, regime: str, found: Mapping[str, Trainings]) -> Iterator[str]:
    """A table for each group of measures that was read."""
    control = control_of(plan, regime)
    if control not in found:
        return
    own = found[control][0]
    groups = (
        [ALIGNMENT] * any(name.startswith(f"{ALIGNMENT} ") for name in own)
        + [name for name in own if name.startswith("moving ")] + [SPEED] * (SPEED in own),
        [name for name in own if name.startswith("velocity ")],
        [name for name in SCORES if name in own],
    )  # fmt: skip
    for group in filter(None, groups):
        yield table(plan, regime, found, group)
    if regime == SAMPLED and (text := equal_motion(plan, found)):
        yield text


def table(plan: Plan, regime: str, found: Mapping[str, Trainings], measures: Sequence[str]) -> str:
    """Means of the control and of the rows that frame it, and each arm's difference from its partner, with
    95 % intervals over trainings and prompts; for the measures that are tested also Holm's p."""
    control = control_of(plan, regime)
    chances = {name: corrected(plan, regime, found, name) for name in measures if name in plan.tests}
    lines = [
        f"| arm | trainings | {' | '.join(map(heading, measures))} |",
        "|---" * (2 + len(measures)) + "|",
    ]
    for arm, trainings in found.items():
        if arm == control or arm in ROWS:
            cells = [own_mean(trainings, name) for name in measures]
        else:
            effects = [difference(plan, regime, found, arm, name) for name in measures]
            cells = [cell(e, chances.get(name, {}).get(arm)) for name, e in zip(measures, effects)]
        if any(cells):
            title = f"**{arm}**" if arm == control else arm
            partner = partner_of(plan, regime, arm)
            if partner != control and arm not in ROWS:
                title += f" (less {partner})"
            lines.append(f"| {title} | {len(trainings)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def heading(measure: str) -> str:
    """A measure in words."""
    kind, *rest = measure.split()
    if kind == "moving":
        return f"error on moving tokens, sigma {rest[0]}"
    if kind == "velocity":
        return f"velocity R^2, block {rest[0]}, sigma {rest[1]}"
    return "held-out alignment loss" if measure == ALIGNMENT else measure.replace("_", " ")


def own_mean(trainings: Trainings, measure: str) -> str:
    """The mean of an arm itself; nothing for the alignment, which every arm has another of, and for what was
    not read."""
    if any(measure not in each for each in trainings):
        return ""
    found = crossed_difference([each[measure] for each in trainings])
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def cell(effect: Effect | None, p: float | None) -> str:
    """A difference, bold where its corrected p is below `LEVEL`; nothing where there is none."""
    if effect is None or p is None:
        return "" if effect is None else str(effect)
    text = f"{effect} p {p:.3f}" if p >= 0.001 else f"{effect} p < 0.001"
    return f"**{text}**" if p < LEVEL else text


def difference(
    plan: Plan, regime: str, found: Mapping[str, Trainings], arm: str, measure: str
) -> Effect | None:
    """An arm less its partner, training by training and prompt by prompt; None where one was not read."""
    name = f"{ALIGNMENT} {arm}" if measure == ALIGNMENT else measure
    ours, theirs = (
        [each[name] for each in found.get(row, ()) if name in each]
        for row in (arm, partner_of(plan, regime, arm))
    )
    if not ours or not theirs:
        return None
    if (chosen := clips_of(plan, arm)) is not None and measure in SCORES:
        ours, theirs = ([[row[n] for n in chosen] for row in rows] for rows in (ours, theirs))
    paired = ours if len(theirs) == 1 else ours[: len(theirs)]
    return crossed_difference(paired, theirs[: len(paired)])


def corrected(plan: Plan, regime: str, found: Mapping[str, Trainings], measure: str) -> dict[str, float]:
    """Holm's p of every arm that is tested: not of the control, of bounds, yardsticks and rows that frame."""
    control = control_of(plan, regime)
    arms = [arm.name for arm in plan.arms if arm.name in found and arm.name != control and arm.tested]
    effects = {arm: difference(plan, regime, found, arm, measure) for arm in arms}
    return holm(
        {arm: effect.p for arm, effect in effects.items() if effect is not None and effect.p == effect.p}
    )


def equal_motion(plan: Plan, found: Mapping[str, Trainings]) -> str:
    """The law score of arms that are not trained less that of clips with as much motion and no law: those of
    the base and the yardsticks whose dynamic degrees lie around the arm's, mixed so that the mean is the
    arm's, prompt by prompt. Nothing where the plan has no yardstick."""
    names = [arm.name for arm in plan.arms if arm.yardstick and arm.name in found]
    if not names:
        return ""
    scale = sorted((found[name][0] for name in [BASE.name, *names]), key=lambda row: fmean(row[MOTION]))
    lines = [
        "| arm | dynamic degree | law | law of the yardstick there | law, less that |\n|---|---|---|---|---|"
    ]
    for arm in plan.arms:
        if arm.name not in found or arm.yardstick or arm.against or arm.worlds:
            continue
        ours = [each["law"] for each in found[arm.name]]
        motion = fmean(fmean(each[MOTION]) for each in found[arm.name])
        cells = [f"{motion:.3f}", f"{fmean(map(fmean, ours)):.3f}", "", "outside the yardstick's range"]
        for less, more in pairwise(scale):
            low, high = fmean(less[MOTION]), fmean(more[MOTION])
            if low <= motion <= high:
                share = (motion - low) / (high - low) if high > low else 0.0
                there = [a + share * (b - a) for a, b in zip(less["law"], more["law"])]
                cells[2:] = [f"{fmean(there):.3f}", str(crossed_difference(ours, [there]))]
        lines.append(f"| {arm.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tested(plan: Plan, results: Results) -> dict[str, dict[str, Effect]]:
    """The differences of every arm in what is tested, by "regime: measure"."""
    panels = {}
    for regime, found in results.found.items():
        control = control_of(plan, regime)
        arms = [
            arm.name for arm in plan.arms if arm.name in found and arm.name != control and control in found
        ]
        for measure in plan.tests:
            effects = {arm: difference(plan, regime, found, arm, measure) for arm in arms}
            if known := {arm: effect for arm, effect in effects.items() if effect is not None}:
                panels[f"{regime}: {heading(measure)}"] = known
    return panels


def draw_effects(panels: Mapping[str, Mapping[str, Effect]]) -> bytes:
    """Differences with their intervals as PNG, a panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tallest = max(map(len, panels.values()))
    figure = Figure(figsize=(4.2 * len(panels), 1.2 + 0.26 * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, effects) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for row, effect in enumerate(effects.values()):
            axes.plot([effect.low, effect.high], [row, row], color="C0")
            axes.plot([effect.mean], [row], "o", color="C0")
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(effects)), list(effects))
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()


def strips_of(study: Study, regime: str) -> Iterator[tuple[str, Path]]:
    """Title and strip of the rows of a regime's sheet: real clips and the base first, then its arms with the
    first seed."""
    seed = study.plan.seeds[0]
    rows = [("real", study.out / SAMPLED / "real"), (BASE.name, study.folder(SAMPLED, BASE, seed))]
    for name in study.results.found[regime]:
        if name not in (BASE.name, "real"):
            folder = study.folder(regime, ArmPlan(name=name), seed)
            rows.append((name, folder if folder.is_dir() else study.out / regime / name))
    return ((title, folder / "strip.png") for title, folder in rows if (folder / "strip.png").is_file())
