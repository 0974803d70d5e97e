"""Kills `latent-physics evaluate generate` again and again, and one of its servers for good, and counts what
is left.

python3 dev.py bench evaluation/kills            20 prompts x 2 runs x 2 arms through two real ComfyUIs

The toy world is the generator. It prints when each kill came, what the manifest holds at the end, and how
many prompts the surviving server ran: a clip that was made twice there, or is missing, ends it with status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latent_physics.devtools import comfyui
from latent_physics.devtools.server import ComfyServer
from latent_physics.evaluation.manifest import Manifest
from latent_physics.evaluation.plan import load_plan
from latent_physics.training.__main__ import main as latent_physics

ROOT = Path(__file__).resolve().parents[2]
RUN = "import sys; from latent_physics.training.__main__ import main; sys.exit(main(sys.argv[1:]))"


def graph(frames: int, steps: int) -> dict[str, Any]:
    """The toy world in stock nodes; an arm wires LaMo Guidance, node 10, to the sampler."""
    sampling = {"seed": 0, "steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    wires = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    guidance = {"strength": 2.0, "active": 0.8, "lag": 0, "max_ratio": 0.0, "full_trace": False}
    nodes = {
        "1": ("LatentPhysicsLoadToyWorld", {}),
        "2": ("CLIPTextEncode", {"text": "a ball", "clip": ["1", 1]}),
        "3": ("CLIPTextEncode", {"text": "", "clip": ["1", 1]}),
        "4": ("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": frames, "batch_size": 1}),
        "5": ("KSampler", {**sampling, "denoise": 1.0, **wires}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("CreateVideo", {"images": ["6", 0], "fps": 16.0}),
        "8": ("SaveVideo", {"video": ["7", 0], "filename_prefix": "x", "format": "mp4", "codec": "h264"}),
        "9": ("LatentPhysicsLoadMotionPredictor", {"name": "toy/toy_predictor_order1.safetensors"}),
        "10": ("LatentPhysicsLaMoGuidance", {"model": ["1", 0], "predictor": ["9", 0], **guidance}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def server(base: Path) -> ComfyServer:
    """A ComfyUI with the pack, not started."""
    (base / "custom_nodes").mkdir(parents=True)
    comfyui.link_pack(ROOT, base / "custom_nodes" / "latent_physics")
    found = comfyui.find(ROOT)
    if found is None:
        raise SystemExit("there is no ComfyUI: `python3 dev.py ui` puts one into .comfyui.")
    log = base / "server.log"
    return ComfyServer(python=Path(sys.executable), comfyui=found.path, base=base, log=log, threads=1)


def lines(out: Path) -> int:
    """Clips in the manifest."""
    path = out / "manifest.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed_and_resumed(out: Path, servers: list[ComfyServer], kills: int, total: int) -> None:
    """Generates, killing the process at equal shares of the clips, the second server at the middle kill."""
    urls = [one.url for one in servers]
    words = ["evaluate", "generate", "--out", str(out), "--servers", *urls, "--patience", "5"]
    for number in range(1, kills + 1):
        goal = total * number // (kills + 1)
        process = subprocess.Popen([sys.executable, "-c", RUN, *words])
        while lines(out) < goal and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        print(f"killed at {lines(out)} of {total} clips", flush=True)
        if number == (kills + 1) // 2 and servers[1].process:
            servers[1].process.kill()
            print(f"killed the server {servers[1].url}", flush=True)
    status = subprocess.call([sys.executable, "-c", RUN, *words])
    print(f"resumed to the end, status {status}", flush=True)


def audit(out: Path, survivor: ComfyServer) -> bool:
    """Prints what is there against what should be; whether both agree."""
    plan, manifest = load_plan(out), Manifest(out, "toyworld")
    runs = range(1, plan.runs + 1)
    expected = {(arm, p.id, run, 0) for arm in plan.all_arms() for p in plan.prompts for run in runs}
    files = {path for path in (out / "clips").glob("**/*") if path.is_file()}
    listed = {manifest.file_of(record) for record in manifest.records.values()}
    jobs = {record.job for record in manifest.records.values()}
    history = survivor.get_json("/history").values()
    prefixes = [entry["prompt"][2]["8"]["inputs"]["filename_prefix"] for entry in history]
    made = [prefix for prefix in prefixes if prefix.rpartition("/")[2] in jobs]
    print(f"clips expected {len(expected)}, in the manifest {len(manifest.records)}, files {len(files)}")
    missing, strange = expected - manifest.records.keys(), manifest.records.keys() - expected
    print(f"missing {len(missing)}, not planned {len(strange)}, files without a line {len(files - listed)}")
    print(f"the surviving server ran {len(made)} prompts, {len(made) - len(set(made))} of them twice")
    return not (missing or strange or files != listed or len(made) != len(set(made)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base, out = Path(name), Path(name) / "run"
        (base / "graph.json").write_text(json.dumps(graph(args.frames, args.steps)))
        (base / "arms.toml").write_text('[plain]\n[lamo]\n"5.model" = ["10", 0]\n')
        words = ["evaluate", "plan", "--out", str(out), "--benchmark", "toyworld", "--label", "toy"]
        words += ["--prompts", str(args.prompts), "--runs", str(args.runs)]
        words += ["--graph", str(base / "graph.json"), "--arms", str(base / "arms.toml")]
        if latent_physics(words):
            return 1
        with server(base / "a") as first, server(base / "b") as second:
            total = args.prompts * args.runs * 2
            killed_and_resumed(out, [first, second], args.kills, total)
            return 0 if audit(out, first) else 1


if __name__ == "__main__":
    sys.exit(main())
