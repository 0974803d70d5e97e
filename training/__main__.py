"""`python training COMMAND` from a bare clone, `latent-physics COMMAND` once installed."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "bench": "measure the kernels: time and peak memory against the naive and the peers' formulas",
    "cache": "encode a folder of videos: latents + prompt embeddings, one safetensors per clip",
    "pack": "put cached clips into a few large files (webdataset shards), which are trained on as they are",
    "predictor": "train LaMo's motion field predictor on cached latents",
    "pila": "train the PILA physics adapter on a frozen backbone",
    "finetune": "fine-tune a video model, LoRA or full, with any weighted set of physics objectives",
    "plan": "say what a recipe takes: GiB, hours on graphics cards, and what would make it fit",
    "motion-head": "train MoAlign's motion subspace (stage 1), which a fine-tune then aligns with",
    "grpo": "reinforce a video model by rewards: critics, the toy law, a judge behind http (GRPO, NFT)",
    "export": "write a fine-tune's checkpoint as a file that ComfyUI loads",
    "compare": "fine-tune the toy model with each objective and print a table of physics",
    "study": "a plan's arms on the toy world: what each could teach (the gate), what it did, how sure",
    "toy-teachers": "train the toy world's video encoders (VideoMAE, V-JEPA 2)",
    "evaluate": "public physics benchmarks: clips from a graph or a pipeline, official scorers, one table",
    "toyworld": "train the toy world's models (VAE, DiT, text encoder)",
}


def import_package() -> None:
    """Makes `latent_physics` importable from the clone this file lies in, where it is not installed."""
    if importlib.util.find_spec("latent_physics") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "latent_physics", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["latent_physics"] = module
    spec.loader.exec_module(module)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status. `argv` defaults to the process's arguments."""
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="latent-physics",
        description="Training scripts of ComfyUI-LatentPhysics.",
        epilog=f"commands:\n{listing}\n\nlatent-physics COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    import_package()
    try:
        module = importlib.import_module(f"latent_physics.training.commands.{args.command.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("latent_physics"):
            raise
        how = "install it for your hardware first" if error.name == "torch" else "pip install -e '.[train]'"
        print(
            f"error: latent-physics {args.command} needs {error.name}, which is not installed: {how}.",
            file=sys.stderr,
        )
        return 1
    return module.main(args.rest) or 0


if __name__ == "__main__":
    sys.exit(main())
