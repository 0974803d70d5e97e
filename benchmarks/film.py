"""Where the motion field predictor spends its time: would one kernel for norm + FiLM + activation pay?

    python benchmarks/film.py            # a 480p latent frame
    python benchmarks/film.py --side 32  # another size

Prints the share of forward and backward time (gradient by the frame alone, as guidance needs it) in convolutions and in
everything between them. The latter bounds what a fused kernel could save; it would still have to read and write once.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from latent_physics.methods.lamo.predictor import MotionFieldPredictor
from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "convolution": ("conv",),
    "norm": ("group_norm", "native_group_norm"),
    "FiLM": ("addcmul",),
    "activation": ("silu", "sigmoid"),
}


def group_of(name: str) -> str:
    """The group a torch operator belongs to."""
    return next((group for group, words in GROUPS.items() if any(word in name for word in words)), "rest")


def shares(height: int, width: int, device: str, frames: int = 1) -> dict[str, float]:
    """Share of time by group."""
    torch.manual_seed(0)
    predictor = MotionFieldPredictor(16, 4096).to(device).requires_grad_(False)
    for parameter in predictor.parameters():
        parameter.normal_(std=0.02)  # a network of zeros would let backward skip work
    x = torch.randn(frames, 16, height, width, device=device, requires_grad=True)

    def step() -> None:
        predictor(x, torch.ones(1, 4096, device=device)).square().sum().backward()

    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as record:
        step()
    total: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        total[group_of(event.key.lower())] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    whole = sum(total.values())
    return {group: time / whole for group, time in sorted(total.items(), key=lambda item: -item[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, help="height and width of the latent frame (default 60x104)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    height, width = (args.side, args.side) if args.side else (60, 104)
    for group, share in shares(height, width, args.device).items():
        print(f"{group:<12} {share:.1%}")


if __name__ == "__main__":
    main()
