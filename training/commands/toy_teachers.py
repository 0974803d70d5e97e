"""`latent-physics toy-teachers`: trains the toy world's video encoders."""

from __future__ import annotations

from ..console import ProgressLine, StopRequest
from ..tasks.toy.encoders import ToyTeachersConfig, train_teacher
from . import cli


def main(argv: list[str]) -> int:
    """The command. Returns the exit status."""

    def command() -> int:
        config = cli.parse(
            ToyTeachersConfig,
            argv,
            prog="latent-physics toy-teachers",
            description=ToyTeachersConfig.__doc__ or "",
        )
        with StopRequest() as stop:
            for name in ("videomae", "vjepa2") if config.which == "both" else (config.which,):
                path = train_teacher(name, config, stop, ProgressLine(name))
                if path is None:
                    print("Stopped; run the same command to resume.")
                    return 130
                print(path)
        return 0

    return cli.run_command(command)
