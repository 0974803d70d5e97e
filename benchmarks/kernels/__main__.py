"""Measures every kernel against the naive formula, the peers' formula and the machine's own limits.

    python3 dev.py bench kernels               # measures and prints
    python3 dev.py bench kernels --only TRD    # one kernel
    python3 dev.py bench kernels --quick       # the smallest shape of each
    python3 dev.py bench kernels --growth      # and peak memory over 1k to 32k tokens
    python3 dev.py bench kernels --write       # and puts the results into docs/benchmarks.md
    python3 dev.py bench kernels --show        # prints the stored results, measures nothing

`latent-physics bench` is the same command. Figures depend on the machine and on what else runs on it; ratios
less so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from .measure import Kernel, Measurement, Rates, machine, measure, measure_rates
from .relational import GROWTH, KERNELS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = f"{__package__}.relational"
DOCS, PLOT, RESULTS = (
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "benchmarks_memory.png",
    HERE / "results.json",
)
BEGIN, END = "<!-- measured kernels: begin -->", "<!-- measured kernels: end -->"
GROWING = (("TRD", "ours"), ("tempered KL", "ours"), ("TRD", "VideoREPA's formula"))
HEAD = "kernel | shape | time | peak memory | against | time ratio | memory ratio | floor | of the floor"
GREEN, RED, BLUE = "#2a7f4f", "#b03a2e", "#1f5f8b"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = _parser().parse_args(argv)
    if args.show:
        if not args.results.exists():
            print(
                f"there are no stored results in {args.results}; measure with --write first.", file=sys.stderr
            )
            return 1
        print(render(json.loads(args.results.read_text())))
        return 0
    results = collect(args)
    text = render(results)
    print(text)
    if args.write:
        args.results.write_text(json.dumps(results, indent=1) + "\n")
        write_docs(text)
    plot = args.plot or (PLOT if args.write else None)
    if results["growth"] and plot:
        draw(results["growth"], plot)
        print(f"wrote {plot}")
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="latent-physics bench", description=__doc__, formatter_class=raw)
    names = [kernel.name for kernel in KERNELS]
    parser.add_argument(
        "--only", choices=names, action="append", help="measure this kernel alone (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest shape of each kernel, one call")
    parser.add_argument(
        "--growth", action="store_true", help="peak memory over the number of tokens, up to 32k (minutes)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="wall", help="processor time suits a busy machine"
    )
    parser.add_argument("--repeat", type=int, default=3, help="timed calls; the best counts")
    parser.add_argument("--plot", type=Path, help="where to save the memory plot (PNG); needs --growth")
    parser.add_argument("--write", action="store_true", help="store the results in docs/benchmarks.md")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="where --write stores and --show finds the figures (JSON)",
    )
    parser.add_argument("--show", action="store_true", help="print the stored results and measure nothing")
    return parser


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the arguments ask for."""
    rates = measure_rates(args.device, args.threads, args.clock)
    options = {
        "device": args.device,
        "threads": args.threads,
        "clock": args.clock,
        "repeat": 1 if args.quick else args.repeat,
    }
    rows = []
    for kernel in (kernel for kernel in KERNELS if not args.only or kernel.name in args.only):
        for shape in kernel.shapes[:1] if args.quick else kernel.shapes:
            rows.append(_row(kernel, shape, rates, options))
            print(f"measured {kernel.name} {_shape(shape)}", file=sys.stderr, flush=True)
    limits = {"products": rates.products, "mm": rates.mm, "memory": rates.memory}
    growth = _growth(options) if args.growth else []
    clock = "" if args.clock == "wall" else ", processor time"
    return {
        "machine": machine(args.device, args.threads) + clock,
        "limits": limits,
        "rows": rows,
        "growth": growth,
    }


def _row(kernel: Kernel, shape: dict[str, Any], rates: Rates, options: dict[str, Any]) -> dict[str, Any]:
    found = {variant: _measured(kernel.name, variant, shape, options) for variant in kernel.variants}
    flops, moved = kernel.flops(**shape), kernel.bytes(**shape)
    floor = rates.floor(flops, moved)
    limit = "arithmetic" if flops / rates.products >= moved / rates.memory else "memory"
    return {
        "kernel": kernel.name,
        "what": kernel.what,
        "shape": _shape(shape),
        "floor": floor,
        "limit": limit,
        "found": found,
    }


PEERS: dict[str, dict[str, Any]] = {}
"""The peers' formula is one for all relational losses, so each shape of it is measured once."""


def _measured(name: str, variant: str, shape: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if "VideoREPA" not in variant:
        return vars(measure(MODULE, name, variant, shape, **options))
    key = _shape(shape)
    if key not in PEERS:
        PEERS[key] = vars(measure(MODULE, name, variant, shape, **options))
    return PEERS[key]


def _shape(shape: dict[str, Any]) -> str:
    return f"{'x'.join(map(str, shape['grid']))} (N = {math.prod(shape['grid'])}), C = {shape['channels']}"


def _growth(options: dict[str, Any]) -> list[dict[str, Any]]:
    points = []
    for name, variant in GROWING:
        for shape in GROWTH:
            found = measure(MODULE, name, variant, shape, **{**options, "repeat": 0})
            points.append(
                {"kernel": name, "variant": variant, "tokens": math.prod(shape["grid"]), **vars(found)}
            )
            print(f"measured {name}, {variant}, {points[-1]['tokens']} tokens", file=sys.stderr, flush=True)
    return points


# -- showing -------------------------------------------------------------------------------------------------


def render(results: dict[str, Any]) -> str:
    """The results as markdown."""
    limits = results["limits"]
    lines = [
        f"Machine: {results['machine']}. Large products run at {limits['products'] / 1e9:.0f} GFLOP/s "
        f"(torch.mm alone: {limits['mm'] / 1e9:.0f}), memory moves at {limits['memory'] / 1e9:.1f} GB/s.",
        "",
        f"| {HEAD} |",
        "|---" * (HEAD.count("|") + 1) + "|",
    ]
    for row in results["rows"]:
        lines.extend(_lines(row))
    if results["growth"]:
        lines += ["", "Peak memory, forward and backward, in MiB:", "", *_growth_lines(results["growth"])]
    return "\n".join(lines)


def _lines(row: dict[str, Any]) -> list[str]:
    (_, ours), *others = ((name, Measurement(**found)) for name, found in row["found"].items())
    lines = []
    for position, (name, other) in enumerate(others):
        own, reached = " | | |", " |"
        if position == 0:  # ours stands once, beside the first it is compared with
            own = f"{row['kernel']} | {row['shape']} | {_time(ours.seconds)} | {ours.peak:.0f} MiB"
            reached = f"{_time(row['floor'])} ({row['limit']}) | {row['floor'] / ours.seconds:.0%}"
        lines.append(f"| {own} | {name} | {_ratios(ours, other)} | {reached} |")
    return lines


def _ratios(ours: Measurement, other: Measurement) -> str:
    """The two cells of time and memory."""
    if other.note:
        return f"{other.note} | "
    return f"{ours.seconds / other.seconds:.2f} | {ours.peak / other.peak:.3f}" if other.peak > 0 else "- | -"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def _growth_lines(points: list[dict[str, Any]]) -> list[str]:
    tokens = sorted({point["tokens"] for point in points})
    lines = ["| | " + " | ".join(f"N = {n}" for n in tokens) + " |", "|---" * (len(tokens) + 1) + "|"]
    for name, variant in GROWING:
        cells = {
            point["tokens"]: point
            for point in points
            if (point["kernel"], point["variant"]) == (name, variant)
        }
        values = [
            cells[n]["note"] or f"{cells[n]['peak']:.0f} ({_time(cells[n]['seconds'])})" for n in tokens
        ]
        lines.append(f"| {name}, {variant} | " + " | ".join(values) + " |")
    return lines


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Peak memory over the number of tokens, both logarithmic: slope 1 is linear growth, slope 2
    quadratic.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (name, variant), color in zip(GROWING, (GREEN, BLUE, RED)):
        line = [
            point
            for point in points
            if (point["kernel"], point["variant"]) == (name, variant) and not point["note"]
        ]
        axes.plot(
            [p["tokens"] for p in line],
            [p["peak"] for p in line],
            "o-",
            color=color,
            label=f"{name}, {variant}",
        )
    first = min(point["tokens"] for point in points)
    base = min(point["peak"] for point in points if point["tokens"] == first and not point["note"])
    reach = [first, max(point["tokens"] for point in points)]
    axes.plot(reach, [base * n / first for n in reach], "--", color="0.5", label="linear in N")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens N (768 channels)",
        ylabel="peak memory, forward and backward (MiB)",
    )
    ticks = sorted({point["tokens"] for point in points})
    axes.set_xticks(ticks, [f"{tick / 1000:.1f}k" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_docs(text: str) -> None:
    """Puts the tables between the markers of docs/benchmarks.md."""
    page = DOCS.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{DOCS} lacks the markers {BEGIN} and {END}.")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    DOCS.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
