"""Scores one dimension with VBench or VBench-2.0 through their documented Python classes; run by the scorer's
own interpreter.

Their command lines fix the device to CUDA, put a date with colons into the result's name and go through a
shell.
"""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", choices=("vbench", "vbench2"), default="vbench")
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--dimension", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mode", default="vbench_standard")
    parser.add_argument("--root", type=Path, help="clone, where the package is not installed")
    parser.add_argument(
        "--filter", action="store_true", help="keep still clips only, as temporal flickering wants"
    )
    args = parser.parse_args()
    if args.root:
        sys.path.insert(0, str(args.root))
    package = importlib.import_module(args.package)
    here = Path(package.__file__).parent
    videos = filtered(args) if args.filter else args.videos
    if args.package == "vbench":
        judge = package.VBench(args.device, str(here / "VBench_full_info.json"), str(args.output))
    else:
        judge = package.VBench2(args.device, str(here / "VBench2_full_info.json"), str(args.output))
    # The name is taken only once the dimension is done: a crash leaves no file that looks finished.
    name = f"{args.dimension}.part"
    settings = {"imaging_quality_preprocessing_mode": "longer"}
    judge.evaluate(
        videos_path=str(videos), name=name, dimension_list=[args.dimension], mode=args.mode, **settings
    )
    os.replace(args.output / f"{name}_eval_results.json", args.output / f"{args.dimension}_eval_results.json")


def filtered(args: argparse.Namespace) -> Path:
    """Folder of the clips that VBench's static filter keeps."""
    result = args.output / "static_filter"
    command = [sys.executable, "-c", "from vbench.cli.vbench import main; main()", "static_filter"]
    command += [
        "--videos_path",
        str(args.videos),
        "--result_path",
        str(result),
        "--filter_scope",
        "temporal_flickering",
    ]
    subprocess.run(command, check=True)
    return result / "filtered_videos"


if __name__ == "__main__":
    main()
