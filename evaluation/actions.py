"""The actions of `latent-physics evaluate`: settings in, one call, a few sentences out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .arms import load_arms
from .benchmarks import Benchmark, find_benchmark
from .benchmarks.base import merged
from .comfy import ComfyUI
from .doctor import report
from .errors import EvaluationError
from .files import read_toml
from .generate import Options, Outcome, generate
from .graph import Inputs, arm_graph, find_inputs, load_graph
from .manifest import Manifest
from .measures import measure, measures_for, read_measures
from .plan import Plan, check_plan, load_plan, save_plan
from .published import published
from .scorers import load_scorers
from .scoring import Scoring
from .sources import ComfySource, PipelineSource, Source
from .table import claims, make_table, markdown, write_table
from .views import build_views, check_names

Say = Callable[[float, str], None]


@dataclass(kw_only=True)
class PlanConfig:
    """Writes down which clips an evaluation needs, and says what would go wrong before hours are spent."""

    out: Path
    """Folder of the evaluation."""
    benchmark: str
    """physics-iq, videophy, videophy2, phygenbench, vbench, vbench2, toyworld or own."""
    prompts: str
    """The benchmark's prompts, in your clone or a file of your own; a number for toyworld."""
    graph: Path | None = None
    """Workflow in API format, run by ComfyUI."""
    pipeline: Path | None = None
    """Instead of a graph: TOML with source, dtype, device, fps and [call] of a diffusers pipeline."""
    arms: Path | None = None
    """TOML with a table of overrides per arm; left out, the graph as it is."""
    runs: int = 0
    """Repetitions of the whole benchmark, each with its own seeds; 0 for the benchmark's usual number."""
    seed: int = 0
    """Seed that all others follow from."""
    limit: int = 0
    """Number of prompts to take from the front; 0 for all."""
    label: str = "model"
    """Name of the model in file names and tables."""
    fps: float = 0.0
    """Frames per second of the clips, where a benchmark has to know before (Physics-IQ)."""
    style: str = "bpp"
    """Physics-IQ's prompt setting: bpp (best practice) or op (original)."""
    frames: Path | None = None
    """Physics-IQ's folder of first frames (switch-frames)."""
    states: Path | None = None
    """VideoPhy's CSV with states_of_matter by caption."""
    rules: Path | None = None
    """VideoPhy-2's CSV with columns caption and rule."""
    upsampled: Path | None = None
    """Prompts given to the model instead: a text file with a line each, VBench-2.0's folder of them."""
    prompt_column: str = ""
    """Column of the prompt CSV that is given to the model instead of the caption."""
    dimensions: list[str] = field(default_factory=list)
    """VBench's dimensions to generate for; empty for all."""
    baselines: bool = True
    """Make static and shuffled clips from the first arm's."""
    prompt_input: list[str] = field(default_factory=list)
    """NODE.INPUT of the prompt, where the graph leaves it open."""
    seed_input: list[str] = field(default_factory=list)
    """NODE.INPUT of the seed, where the graph leaves it open."""
    output_node: str = ""
    """Node that saves the video, where the graph has several."""
    seconds_per_clip: float = 0.0
    """Seconds of one clip on one GPU, to print hours; 0 leaves them out."""


def make_plan(config: PlanConfig) -> tuple[Plan, list[str]]:
    """The plan of a config, saved, and sentences about it. Raises EvaluationError."""
    benchmark = find_benchmark(config.benchmark)
    options = options_of(config)
    prompts = benchmark.prompts(Path(config.prompts), options)
    plan = Plan(
        benchmark=benchmark.name,
        prompts=tuple(prompts[: config.limit or None]),
        arms=load_arms(config.arms),
        runs=config.runs or benchmark.runs,
        seed=config.seed,
        label=config.label,
        options=options,
        baselines=config.baselines,
        **source_of(config),
    )
    check_plan(plan)
    if plan.graph:
        check_arms(plan, benchmark)
    check_names(plan, benchmark, config.out)
    save_plan(config.out, plan)
    return plan, summary(plan, benchmark, config.seconds_per_clip)


def options_of(config: PlanConfig) -> dict[str, Any]:
    """The benchmark's own settings, paths as absolute text."""
    names = ("style", "frames", "states", "rules", "upsampled", "prompt_column", "dimensions", "fps")
    values = {name: getattr(config, name) for name in names if getattr(config, name)}
    options = {
        name: str(value.resolve()) if isinstance(value, Path) else value for name, value in values.items()
    }
    options["source"] = config.prompts if config.prompts.isdigit() else str(Path(config.prompts).resolve())
    return options


def check_arms(plan: Plan, benchmark: Benchmark) -> None:
    """Raises EvaluationError for overrides that do not fit the graph, and a graph without a place for first
    frames.
    """
    inputs = Inputs.from_json(plan.inputs)
    for overrides in plan.arms.values():
        arm_graph(dict(plan.graph), overrides, inputs)
    if any(prompt.image for prompt in plan.prompts) and inputs.image is None:
        raise EvaluationError(
            f"{benchmark.title} starts from a picture; the graph needs exactly one Load Image node."
        )


def source_of(config: PlanConfig) -> dict[str, Any]:
    """The plan's graph with its inputs, or its pipeline. Raises EvaluationError unless one is given."""
    if (config.graph is None) == (config.pipeline is None):
        raise EvaluationError("give either --graph (a workflow in API format) or --pipeline (a TOML).")
    if config.graph is not None:
        graph = load_graph(config.graph)
        found = find_inputs(
            graph, prompt=config.prompt_input, seed=config.seed_input, output=config.output_node
        )
        return {"graph": graph, "inputs": found.as_json()}
    settings = read_toml(config.pipeline or "")
    lacking = [name for name in ("source", "fps") if name not in settings]
    if lacking:
        raise EvaluationError(
            f"{config.pipeline} states no {lacking[0]}; write source, fps and a table [call]."
        )
    return {"pipeline": settings}


def summary(plan: Plan, benchmark: Benchmark, seconds: float) -> list[str]:
    """Size of a plan, and the benchmark's warnings."""
    clips = sum(1 for _ in plan.jobs())
    size = f"{len(plan.prompts)} prompts, {plan.runs} runs, arms {', '.join(plan.arms)}"
    lines = [f"{benchmark.title}: {size}: {clips} clips to generate."]
    if plan.graph:
        spots = ", ".join(".".join(spot) for spot in [*plan.inputs["prompt"], *plan.inputs["seed"]])
        lines.append(f"Prompt and seed go into {spots}; the video comes from node {plan.inputs['output']}.")
    if seconds:
        lines.append(f"At {seconds:g} s a clip that is {clips * seconds / 3600:.1f} hours of one GPU.")
    return lines + [f"Note: {text}" for text in benchmark.warnings(plan)]


@dataclass(kw_only=True)
class GenerateConfig:
    """Makes the clips that are missing; the same command resumes a run that was stopped or killed."""

    out: Path
    """Folder of the evaluation."""
    servers: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8188"])
    """Running ComfyUIs that share the work."""
    retries: int = 2
    """Further tries of a clip whose graph failed."""
    patience: float = 600.0
    """Seconds that a dead server is waited for."""
    timeout: float = 7200.0
    """Seconds after which a clip counts as failed."""


def generate_clips(config: GenerateConfig, say: Say, stopping: Callable[[], bool]) -> Outcome:
    """Carries out the plan of a folder. Raises EvaluationError."""
    plan = load_plan(config.out)
    benchmark = find_benchmark(plan.benchmark)
    manifest = Manifest(config.out, plan.benchmark)
    options = Options(
        retries=config.retries,
        patience=config.patience,
        check=lambda record: benchmark.objection(plan, record),
    )
    sources: list[Source] = [PipelineSource(plan)]
    if plan.graph:
        servers = [ComfyUI(url) for url in dict.fromkeys(config.servers)]
        sources = [ComfySource(server, plan, timeout=config.timeout) for server in servers]
    return generate(plan, manifest, sources, options, say=say, stopping=stopping)


@dataclass(kw_only=True)
class LayoutConfig:
    """Lays the clips out as the official scorer wants them, after checking names, number, length and frame
    rate.
    """

    out: Path
    """Folder of the evaluation."""


def lay_out(config: LayoutConfig) -> dict[str, int]:
    """Number of clips by folder. Raises EvaluationError."""
    plan = load_plan(config.out)
    return build_views(plan, find_benchmark(plan.benchmark), Manifest(config.out, plan.benchmark))


@dataclass(kw_only=True)
class ScoreConfig:
    """Runs the official scorer on what it has not scored yet."""

    out: Path
    """Folder of the evaluation."""
    scorers: Path
    """TOML that says where the scorers are installed."""
    arms: list[str] = field(default_factory=list)
    """Arms to score; empty for all, the baselines among them."""


def score_clips(config: ScoreConfig, say: Callable[[str], None]) -> None:
    """Scores of all arms. Raises EvaluationError."""
    scoring = scoring_of(config.out, say=say, arms=config.arms)
    unknown = [arm for arm in config.arms if arm not in scoring.plan.all_arms()]
    if unknown:
        raise EvaluationError(
            f"there is no arm {unknown[0]!r}; there are {', '.join(scoring.plan.all_arms())}."
        )
    scoring.scorer = load_scorers(config.scorers).get(scoring.plan.benchmark)
    scoring.benchmark.score(scoring)


def scoring_of(folder: Path, **settings: Any) -> Scoring:
    """The clips of a folder on their way to a scorer."""
    plan = load_plan(folder)
    benchmark = find_benchmark(plan.benchmark)
    return Scoring(plan=plan, benchmark=benchmark, manifest=Manifest(folder, plan.benchmark), **settings)


@dataclass(kw_only=True)
class MeasureConfig:
    """Computes measures that need no official scorer: motion, flicker, dynamic degree by RAFT, critics."""

    out: Path
    """Folder of the evaluation."""
    raft: str = ""
    """RAFT for the dynamic degree: a safetensors file, or raft_large or raft_small to download torchvision's.
    """
    world_model: str = ""
    """World model for the surprise critic: toy_vjepa2, vjepa2 or vjepa2:FOLDER."""
    encoder: str = ""
    """Video encoder for the geometry critic: toy_videomae, videomae:FOLDER, vjepa2:FOLDER."""
    device: str = "cpu"
    """Device of the networks."""


def measure_clips(config: MeasureConfig, say: Say, stopping: Callable[[], bool]) -> None:
    """Measures of all clips. Raises EvaluationError."""
    plan = load_plan(config.out)
    names = ("raft", "world_model", "encoder", "device")
    measures = measures_for(**{name: getattr(config, name) for name in names})
    measure(Manifest(config.out, plan.benchmark), measures, say, stopping)


@dataclass(kw_only=True)
class TableConfig:
    """Prints one table of scores and measures, beside published rows; also writes it as CSV and plot."""

    out: Path
    """Folder of the evaluation."""
    claim: str = ""
    """Arm to claim a gain for; the command fails unless an interval supports one."""
    compare: bool = True
    """Print published rows below ours."""


def table_of(config: TableConfig) -> tuple[str, bool]:
    """The table's text, and whether a claim that was asked for is supported. Raises EvaluationError."""
    scoring = scoring_of(config.out)
    plan, benchmark = scoring.plan, scoring.benchmark
    readings, notes = [], []
    try:
        readings.append(benchmark.read(scoring))
    except EvaluationError as error:
        notes.append(f"No scores of {benchmark.title}: {error}")
    readings.append(read_measures(scoring.manifest))
    rows = published(benchmark.name) if config.compare else []
    title = f"{benchmark.title}: {len(plan.prompts)} prompts, {plan.runs} runs, {plan.label}"
    table = make_table(plan, title, merged(readings), rows)
    table.notes += notes
    write_table(table, config.out)
    text = markdown(table)
    if not config.claim:
        return text, True
    sentences, gain = claims(table, plan, config.claim)
    return text + "\n" + "\n".join(sentences), gain


@dataclass(kw_only=True)
class DoctorConfig:
    """Says which scorers are usable and what the others lack."""

    scorers: Path
    """TOML that says where the scorers are installed."""


def examine(config: DoctorConfig) -> tuple[str, bool]:
    """A line per scorer, and whether all configured ones are usable. Raises EvaluationError."""
    return report(load_scorers(config.scorers))


@dataclass(kw_only=True)
class RunConfig(GenerateConfig):
    """All of it: generates what is missing, lays it out, measures, scores if a scorer is given, prints the
    table.
    """

    scorers: Path | None = None
    """TOML that says where the scorers are installed; left out, the measures alone make the table."""
    raft: str = ""
    """RAFT for the dynamic degree: a safetensors file, raft_large or raft_small."""
    world_model: str = ""
    """World model for the surprise critic."""
    device: str = "cpu"
    """Device of the networks."""
