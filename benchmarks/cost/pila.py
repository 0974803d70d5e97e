"""Cost that PILA adds to a sampling step: operations at any shape, seconds and memory if there is a device to
measure on.

    python3 dev.py bench cost/pila                      # operations at Wan 2.1 1.3B's shape, 81 frames
    python3 dev.py bench cost/pila --measure cuda       # also seconds and peak memory, k = 0..8
    python3 dev.py bench cost/pila --measure cpu        # the same on one core, some minutes

The paper reports 192.6 s for 50 steps at k = 0 and 198.8 s at k = 8.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from latent_physics.methods.pila import PilaAdapter, PilaConfig, PilaCorrection, PilaSettings
from latent_physics.methods.pila.bank import BANK_CHANNELS
from latent_physics.methods.step import SamplingStep
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.measure import peak_of, seconds_of
from .models import MODELS, WAN_LATENT, build, forward_operations, latent_of, time_of, tokens_of
from .seconds import seconds, transformer_by_parts


def operations(config: PilaConfig, latent: tuple[int, int, int]) -> dict[str, float]:
    """Operations of each part at a latent's size, counted on the meta device."""
    with torch.device("meta"):
        adapter = PilaAdapter(config)
        x0 = torch.empty(1, config.channels, *latent)
        heads = [adapter.afe.scaffold, adapter.afe.p_rho_head, *adapter.afe.heads.values()]
        bank, cond = torch.empty(1, BANK_CHANNELS, *latent), torch.empty(1, config.hidden)
        parts = {
            "encoder": lambda: adapter.encoder(x0, cond),
            "field estimation": lambda: [
                head(torch.empty(1, head[0].in_channels, *latent)) for head in heads
            ],
            "one expert": lambda: adapter.experts[0](bank, cond),
            "decoder": lambda: adapter.decoder(bank, cond, x0),
        }
        counted = {}
        for name, work in parts.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                work()
            counted[name] = float(counter.get_total_flops())
    return counted


def step_seconds(device: str) -> float:
    """Seconds of a sampling step of Wan 2.1 1.3B with CFG: whole on a GPU, put together from parts on a
    processor.
    """
    if device == "cpu":
        return 2 * transformer_by_parts(MODELS[0], repeats=1)
    backbone = build(MODELS[0], device=device, dtype=torch.bfloat16)
    noisy, moment, tokens = latent_of(WAN_LATENT, device), time_of(backbone), tokens_of(backbone)
    with torch.no_grad():
        return 2 * seconds(lambda: backbone.predict(noisy, moment, tokens), device, 1)


def measure(device: str, latent: tuple[int, int, int]) -> None:
    """Seconds per correction at k = 0..8, beside a step of the model they correct, and peak memory.

    One thread on a processor.
    """
    on_gpu = device.startswith("cuda")
    kind, clock = device.split(":")[0], "wall" if on_gpu else "processor"
    torch.set_num_threads(1)
    adapter = PilaAdapter().to(device).eval().requires_grad_(False)
    x0 = torch.randn(1, 16, *latent, device=device)
    sigma = torch.tensor([0.5], device=device)
    step = SamplingStep(
        noisy=x0 + torch.randn_like(x0),
        sigma=sigma,
        gain=sigma,
        index=1,
        count=2,
        cond=torch.randn(1, 4096, device=device),
    )
    plain = step_seconds(device) if latent == WAN_LATENT else None
    if plain:
        how = device if on_gpu else f"{device}, one thread, from parts"
        print(f"a step of Wan 2.1 1.3B with CFG: {plain:.4g} s on {how}")
    print("| k | s per correction | step with PILA / step without | memory at its peak, MiB |")
    print("|---|---|---|---|")
    with torch.autocast(kind, torch.bfloat16, enabled=on_gpu):
        for k in range(9):
            correct = partial(PilaCorrection(adapter, PilaSettings(top_k=k)).correct, x0, step)
            peak = peak_of(correct, kind)
            taken = seconds_of(correct, kind, clock)
            ratio = f"{1 + taken / plain:.4f}" if plain else "-"
            print(f"| {k} | {taken:.4g} | {ratio} | {peak:.0f} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latent", type=int, nargs=3, default=WAN_LATENT, metavar=("T", "H", "W"))
    parser.add_argument("--measure", metavar="DEVICE", help="cuda, cuda:N or cpu")
    args = parser.parse_args()
    latent = tuple(args.latent)
    parts = operations(PilaConfig(), latent)
    fixed = parts["encoder"] + parts["field estimation"] + parts["decoder"]
    print(
        f"latent {latent[0]}x{latent[1]}x{latent[2]}; "
        + ", ".join(f"{name} {value:.2e}" for name, value in parts.items())
    )
    step = 2 * forward_operations(build(MODELS[0]), WAN_LATENT)  # with CFG
    print("| k | operations per correction | share of a Wan 2.1 1.3B step with CFG |\n|---|---|---|")
    for k in range(9):
        total = fixed + k * parts["one expert"]
        share = f"{total / step:.2%}" if latent == WAN_LATENT else "-"
        print(f"| {k} | {total:.2e} | {share} |")
    if args.measure:
        measure(args.measure, latent)


if __name__ == "__main__":
    main()
