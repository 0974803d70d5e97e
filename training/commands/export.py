"""`latent-physics export`: writes a fine-tune's checkpoint as a file that ComfyUI loads."""

from __future__ import annotations

from ...methods.weights import WeightsError
from ..backbones.keys import KeyMapError
from ..console import TrainingError
from ..tasks.export import ExportConfig, export
from .cli import parse, run_command


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = parse(
            ExportConfig, argv, prog="latent-physics export", description=ExportConfig.__doc__ or ""
        )
        path = export(config)
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
        return 0

    return run_command(command, WeightsError, TrainingError, KeyMapError)
