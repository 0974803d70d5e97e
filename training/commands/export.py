"""`latent-physics export`: writes a fine-tune's checkpoint as what ComfyUI or diffusers loads."""

from __future__ import annotations

from ...methods.weights import WeightsError
from ..backbones.keys import KeyMapError
from ..tasks.export import ExportConfig, export
from .cli import parse, run_command


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = parse(
            ExportConfig, argv, prog="latent-physics export", description=ExportConfig.__doc__ or ""
        )
        path = export(config)
        files = path.rglob("*") if path.is_dir() else [path]
        print(f"{path} ({sum(file.stat().st_size for file in files) / 2**20:.1f} MiB)")
        return 0

    return run_command(command, WeightsError, KeyMapError)
