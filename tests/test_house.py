"""The order of the house: who may import whom, what is declared where, and that the tree works without being
installed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from latent_physics.devtools import architecture
from latent_physics.devtools.imports import circles, files_used

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "kernels": {"kernels"},
    "methods": {"methods", "kernels"},
    "toyworld": {"toyworld", "methods", "kernels"},
    "encoders": {"encoders", "methods", "kernels"},
    "evaluation": {"evaluation", "encoders", "toyworld", "methods", "kernels"},
    "training": {"training", "evaluation", "encoders", "toyworld", "methods", "kernels"},
    "nodes": {"nodes", "encoders", "toyworld", "methods", "kernels"},
}
# Inside a function only: a node that trains, or looks through a teacher's eyes, calls the code that the
# commands call.
MAY_IMPORT_WHEN_CALLED = {"nodes": {"training"}}
# Top-level modules that only exist inside ComfyUI. `nodes` and `utils` are among them, which is why ours are
# imported relatively.
OF_COMFYUI = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
    "utils",
}
LOADER = "training/backbones/comfyui.py"
"""The one file beside the nodes that knows ComfyUI: caching encodes by its loaders where it is installed."""
HEAVY = {
    "accelerate",
    "av",
    "diffusers",
    "imageio",
    "matplotlib",
    "openai",
    "peft",
    "pydantic",
    "tensorboard",
    "transformers",
}
TOY_LIMIT, ENCODER_LIMIT = 16_000_000, 8_000_000


def modules(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a module as a dotted name: ours as "room.module", others as they are written."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node, node.module
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            # `from . import x` and `from .. import room` name what they import only behind the `import`.
            for alias in node.names:
                yield node, ".".join(["<pack>", *base, alias.name])


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not those in functions, nor under `if TYPE_CHECKING`."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += direct_children(node)


def direct_children(node: ast.stmt) -> list[ast.stmt]:
    found = []
    for field in ("body", "orelse", "finalbody"):
        found += getattr(node, field, [])
    for handler in getattr(node, "handlers", []):
        found += handler.body
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    wrong = []
    for path in modules(room):
        with_the_module = {
            node.lineno for node in at_import(parse(path)) if isinstance(node, ast.Import | ast.ImportFrom)
        }
        for node, name in imports(path):
            parts = name.split(".")
            if parts[0] == "<pack>":
                later = set() if node.lineno in with_the_module else MAY_IMPORT_WHEN_CALLED.get(room, set())
                allowed = parts[1] in MAY_IMPORT[room] | later | {"__version__"}
            elif parts[0] == "latent_physics":
                allowed = False  # the pack has another name inside ComfyUI
            else:
                allowed = room == "nodes" or name_of(path) == LOADER or parts[0] not in OF_COMFYUI
            if not allowed:
                wrong.append(f"{name_of(path)}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


# -- inside the rooms ----------------------------------------------------------------------------------------


def test_no_files_import_one_another_in_a_circle() -> None:
    """Neither openly nor hidden in a function: a circle has no part that can be read, tested or changed by
    itself."""
    files = [*modules(*MAY_IMPORT, "devtools", "benchmarks"), ROOT / "dev.py", ROOT / "__init__.py"]
    graph = {path: files_used(ROOT, path) for path in files}
    assert sum(len(used) for used in graph.values()) > 500, "the search for imports finds too few"
    found = [sorted(map(name_of, circle)) for circle in circles(graph)]
    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


def test_the_search_for_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_the_search_for_imports_finds_modules_packages_and_handed_on_names(tmp_path: Path) -> None:
    for name in ("a/__init__", "a/b", "a/c/__init__", "a/c/d", "e", "f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "a" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nfrom . import c\nfrom .c.d import x\nfrom .c import y\nfrom .. "
        "import f\n"
        "import latent_physics.e\nif TYPE_CHECKING:\n    from .. import g\ndef late():\n    from .. import "
        "e\n"
    )
    found = {path.relative_to(tmp_path).as_posix() for path in files_used(tmp_path, tmp_path / "a" / "b.py")}
    assert found == {"a/c/__init__.py", "a/c/d.py", "f.py", "e.py"}


def test_the_picture_of_the_house_is_drawn_from_its_imports() -> None:
    drawn = architecture.draw(architecture.reduced(architecture.arrows()))
    assert architecture.PICTURE.read_text(encoding="utf-8") == drawn, "run `python -m devtools.architecture`"
    assert (
        f"({architecture.PICTURE.relative_to(ROOT / 'docs').as_posix()})"
        in (ROOT / "docs" / "architecture.md").read_text()
    )


# From the ground up, the floors of a room: a file imports from its own floor or from those below. "x/" is a
# folder, "" the rest of the room.
FLOORS = {
    "kernels": [
        ["autograd.py", "matmul.py", "drift.py", "relational/features.py", "relational/tiles.py"],
        ["relational/reference.py", "relational/tiled.py", "relational/engine_torch.py"],
        ["relational/engine_triton.py"],
        ["selfcheck.py"],
        ["backend.py"],
        ["relational/losses.py"],
        ["relational/__init__.py", "__init__.py"],
    ],
    "training": [
        ["__init__.py", "console.py", "renamed.py", "settings.py", "recipes/"],
        ["loop/"],
        ["backbones/"],
        ["data/", "objectives/"],
        ["tasks/"],
        ["plan/"],
        ["study/"],
        ["commands/", "__main__.py"],
    ],
    "nodes": [["host/", "views/"], ["lamo.py", "prompt.py"], ["pila.py"], [""]],
    "benchmarks": [
        ["kernels/measure.py", "pila/lawful_fields.py", "cost/models.py"],
        ["kernels/relational.py", "cost/seconds.py", "cost/import_time.py"],
        ["__init__.py", "data/", "kernels/", "cost/", "pila/", "toyworld/", "evaluation/"],
        ["run.py"],
    ],
    "evaluation": [
        ["__init__.py", "errors.py", "websocket.py", "drivers/"],
        ["files.py", "video.py", "published.py"],
        ["manifest.py"],
        ["plan.py", "graph.py", "comfy.py"],
        ["arms.py", "scoring.py"],
        ["benchmarks/base.py", "scorers.py"],
        [
            "benchmarks/videophy.py",
            "benchmarks/vbench.py",
            "benchmarks/physics_iq.py",
            "benchmarks/phygenbench.py",
        ],
        ["benchmarks/videophy2.py", "benchmarks/vbench2.py", "benchmarks/own.py"],
        ["benchmarks/__init__.py"],
        ["views.py", "sources.py", "measures.py", "table.py", "doctor.py"],
        ["generate.py"],
        ["actions.py"],
    ],
    "devtools/workflows": [
        ["__init__.py", "format.py", "thumbnails.py"],
        ["files.py", "blueprint.py"],
        ["pieces.py"],
        ["blueprints.py"],
        ["wan.py"],
        ["lamo.py", "wan_lamo.py", "ltx.py", "large.py", "compare.py"],
        ["pila.py", "alignment.py", "critics.py", "first.py"],
        ["__main__.py"],
    ],
}


def floor_of(path: Path, room: str) -> int:
    """Number of the first floor that names a file, or its folder. Raises LookupError where none does."""
    inside = path.relative_to(ROOT / room).as_posix()
    for number, names in enumerate(FLOORS[room]):
        if inside in names or any(name[-1:] in ("", "/") and inside.startswith(name) for name in names):
            return number
    raise LookupError(f"{name_of(path)} stands on no floor: add it to FLOORS.")


TOLD_APART = {
    "DatasetError",  # the clip is encoded again
    "VideoError",  # the clip is left out
    "KeyMapError",  # the caller names the file
    "PartsError",  # the same, of one layer: a KeyMapError by the time it leaves
    "StageStoppedError",  # no error: Ctrl-C between two stages
}


def test_training_has_one_error_beside_those_that_a_caller_tells_apart() -> None:
    found = {
        node.name
        for path in modules("training")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert found == {"TrainingError", *TOLD_APART}


@pytest.mark.parametrize("room", FLOORS)
def test_inside_a_room_imports_go_down(room: str) -> None:
    wrong = [
        f"{name_of(path)} imports {name_of(used)}"
        for path in modules(room)
        for used in files_used(ROOT, path)
        if used.is_relative_to(ROOT / room) and floor_of(used, room) > floor_of(path, room)
    ]
    assert not wrong, "\n".join(wrong)


STEPPING = {
    "training/loop/loop.py": "the loop",
    "training/loop/stepper.py": "a step through accelerate or in one process",
    "training/loop/processes.py": "accelerate's backward pass, in one process",
    "training/loop/checkpoint.py": "a step that changes nothing: an optimiser makes its state to be filled",
    "training/tasks/pila/zero.py": "a step under ZeRO-2",
    "training/plan/step.py": "one step on fake tensors, counted part by part: nothing is learned",
}
"""Files that run a backward pass or an optimiser's step, and what for."""


def steps(tree: ast.AST, repeated: bool = False) -> Iterator[bool]:
    """Every call of a backward pass or an optimiser's step: whether it stands in a `for` or `while`."""
    for node in ast.iter_child_nodes(tree):
        inside = repeated or isinstance(node, ast.For | ast.While)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            stepped = node.func.attr == "step" and owner.endswith(("optimizer", "stepper"))
            if node.func.attr == "backward" or stepped:
                yield inside
        yield from steps(node, inside and not isinstance(node, ast.FunctionDef))


def test_there_is_one_training_loop() -> None:
    """A training loop is a backward pass or an optimiser's step that is repeated; steps that are not stand in
    few places, each for a reason."""
    found = {name_of(path): list(steps(parse(path))) for path in modules(*MAY_IMPORT)}
    assert {name for name, inside in found.items() if inside} == set(STEPPING)
    assert {name for name, inside in found.items() if any(inside)} == {"training/loop/loop.py"}


def test_the_search_for_loops_finds_them() -> None:
    lines = "while a:\n    with b:\n        loss.backward()\nself.optimizer.step()\nscheduler.step()"
    assert list(steps(ast.parse(lines))) == [True, False]


LONG_FILES = {"methods/pila/residuals.py": "a table: every law of every category, a few lines each"}
"""Files above 400 lines, with the reason; two at most."""


def test_functions_fit_a_screen_and_files_have_one_subject() -> None:
    paths = modules(*MAY_IMPORT, "devtools", "benchmarks")
    nodes = (node for path in paths for node in ast.walk(parse(path)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = sorted(node.end_lineno - node.lineno + 1 for node in functions)
    assert statistics.median(lengths) <= 8
    assert lengths[int(0.95 * len(lengths))] <= 30
    long = {name_of(path) for path in paths if path.read_text(encoding="utf-8").count("\n") > 400}
    assert long == set(LONG_FILES)
    assert len(LONG_FILES) <= 2


WIDTH = 110
NARROW = (*MAY_IMPORT, "benchmarks", "devtools", "tests")
"""Rooms whose lines keep to WIDTH."""


def texts(path: Path) -> set[int]:
    """Numbers of the lines inside texts of several lines, which are broken as their readers need them."""
    strings = (node for node in ast.walk(parse(path)) if isinstance(node, ast.JoinedStr | ast.Constant))
    spans = {(node.lineno, node.end_lineno) for node in strings if node.end_lineno > node.lineno}
    documented = {node.value.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Expr)}
    return {line for first, last in spans if first not in documented for line in range(first, last + 1)}


@pytest.mark.parametrize("room", NARROW)
def test_lines_keep_to_one_width(room: str) -> None:
    wrong = []
    for path in modules(room):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        long = [number for number, line in lines if len(line) > WIDTH]
        wrong += [f"{name_of(path)}:{number}" for number in long if number not in texts(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["kernels", "methods", "toyworld", "nodes"])
def test_nothing_heavy_is_imported_with_the_pack(room: str) -> None:
    wrong = []
    for path in modules(room):
        for node in at_import(parse(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            wrong += [
                f"{name_of(path)}:{node.lineno} imports {name}"
                for name in names
                if name.split(".")[0] in HEAVY
            ]
    assert not wrong, "\n".join(wrong)


# Programs that have to find ComfyUI or a scorer's own source, or run without an installed pack.
MAY_EDIT_THE_PATH = {
    "benchmarks/cost/import_time.py",
    "benchmarks/toyworld/shipped_settings.py",
    "evaluation/drivers/vbench_driver.py",
    "tests/nodes/conftest.py",
    "tests/training/conftest.py",
    "tests/test_house.py",
    LOADER,
}


def test_no_file_edits_the_path_to_find_another() -> None:
    files = [*modules(*MAY_IMPORT, "devtools", "benchmarks", "tests"), ROOT / "dev.py"]
    pattern = re.compile(r"sys\.path(\.(append|insert|extend)| *\+?= )|syspath_prepend")
    found = {name_of(path) for path in files if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == MAY_EDIT_THE_PATH


FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "os.system",
    "yaml.load",
    "numpy.load",
    "np.load",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}


def unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that runs code found in data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                yield node.lineno, ast.unparse(node.func)
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" or (
                    keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) != "False"
                ):
                    yield node.lineno, keyword.arg
        elif isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name)
                for alias in node.names
                if alias.name.split(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield node.lineno, node.module


def test_no_data_is_run_as_code() -> None:
    paths = [*modules(*MAY_IMPORT, "devtools", "benchmarks"), ROOT / "dev.py", ROOT / "__init__.py"]
    wrong = [f"{name_of(path)}:{line} {name}" for path in paths for line, name in unsafe(parse(path))]
    assert not wrong, "\n".join(wrong)


def test_the_search_for_unsafe_code_finds_it() -> None:
    lines = [
        "import pickle",
        "eval(a)",
        "torch.load(a)",
        "net.eval()",
        "f(shell=False)",
        "f(shell=True, trust_remote_code=a)",
    ]
    found = sorted(unsafe(ast.parse("\n".join(lines))))
    assert found == [(1, "pickle"), (2, "eval"), (3, "torch.load"), (6, "shell"), (6, "trust_remote_code")]


def test_bootstrap_needs_no_package() -> None:
    wrong = []
    for path in [*modules("devtools"), ROOT / "benchmarks" / "run.py", ROOT / "dev.py"]:
        if path.name in ("demo.py", "thumbnails.py"):  # run in the environment that the bootstrap has made
            continue
        for node, name in imports(path):
            ours = name.startswith("<pack>.devtools") or name.split(".")[0] in ("benchmarks", "devtools")
            if not ours and name.split(".")[0] not in sys.stdlib_module_names:
                wrong.append(f"{name_of(path)}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_requirements_are_those_of_pyproject_and_leave_torch_to_the_user(project: dict) -> None:
    assert sorted(requirement_lines()) == sorted(project["project"]["dependencies"])
    names = [re.match(r"[\w.-]+", line).group().lower() for line in requirement_lines()]
    assert not {"torch", "torchvision", "torchaudio", "triton"} & set(names)
    bounded = [line for line in requirement_lines() if "==" in line or "<" in line]
    assert not bounded, "an upper bound would downgrade a user's package"


def test_every_package_is_listed(project: dict) -> None:
    folders = sorted({path.parent for path in modules(*MAY_IMPORT) if path.name == "__init__.py"})
    found = [".".join(["latent_physics", *folder.relative_to(ROOT).parts]) for folder in folders]
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(["latent_physics", *found])


def test_a_wheel_holds_what_the_pack_needs_and_its_commands_run(tmp_path: Path) -> None:
    """`pip install .`: weights, recipes, help, texts and workflows come along, and `latent-physics --help`
    answers."""
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "output", "runs", "tests", "__pycache__")
    source, folder = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT, source, ignore=left_out)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [
            archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA")
        ]
        held = {name.removeprefix("latent_physics/") for name in archive.namelist()}
        archive.extractall(folder)
    assert {"License-Expression: Apache-2.0", "License-File: LICENSE"} <= set(metadata.splitlines())
    rooms = [*MAY_IMPORT, "web", "locales", "workflows"]
    kinds = (".py", ".safetensors", ".json", ".yaml", ".md", ".jpg")
    needed = {name_of(path) for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in kinds}
    assert needed <= held, sorted(needed - held)
    start = f"sys.path.insert(0, {str(folder)!r}); "
    start += "from latent_physics.training.__main__ import main; main(['--help'])"
    result = run_bare(start, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "commands:" in result.stdout


def test_version_is_stated_once(project: dict) -> None:
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{project["project"]["version"]}"' in source


def test_constraints_pin_what_the_pack_asks_for(project: dict) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.match(r"[\w.-]+", line).group() for line in lines if line and not line.startswith("#")}
    extras = project["project"]["optional-dependencies"]
    wanted = [*requirement_lines(), *extras["train"], *extras["dev"]]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line).group().lower()) for line in wanted}
    assert names <= pinned, names - pinned


def test_shipped_weights_are_small_and_safetensors() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    files = [ROOT / name for name in tracked if name] or [
        path for room in MAY_IMPORT for path in (ROOT / room).rglob("*")
    ]
    weights = [path for path in files if path.suffix == ".safetensors" and path.is_file()]
    encoders = [path for path in weights if path.stem in ("toy_videomae", "toy_vjepa2")]
    assert sum(path.stat().st_size for path in encoders) <= ENCODER_LIMIT
    assert sum(path.stat().st_size for path in weights if path not in encoders) <= TOY_LIMIT
    assert not [
        path for path in files if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".npy", ".npz")
    ]


def node_ids() -> set[str]:
    """The ids of all nodes, read from the source: no ComfyUI is needed."""
    calls = (
        node for path in modules("nodes") for node in ast.walk(parse(path)) if isinstance(node, ast.Call)
    )
    values = (keyword.value for call in calls for keyword in call.keywords if keyword.arg == "node_id")
    return {value.value for value in values if isinstance(value, ast.Constant)}


def test_every_node_has_help_and_texts() -> None:
    nodes = node_ids()
    assert nodes
    # A page may also be a folder of languages: <id>/en.md.
    assert {path.stem for path in (ROOT / "web" / "docs").iterdir()} == nodes
    for locale in (ROOT / "locales").iterdir():
        texts = json.loads((locale / "nodeDefs.json").read_text(encoding="utf-8"))
        assert set(texts) == nodes, locale.name
        assert all(text.get("display_name") and text.get("description") for text in texts.values()), (
            locale.name
        )
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [text["display_name"] for text in english.values() if text["display_name"] not in readme]


def test_every_workflow_has_a_thumbnail_and_an_api_twin() -> None:
    shown = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shown
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == shown
    assert {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")} == shown
    listed = re.findall(
        r"^\| \[(\w[\w.]*)\]", (ROOT / "docs" / "workflows.md").read_text(encoding="utf-8"), flags=re.M
    )
    assert sorted(listed) == sorted(shown)


def test_every_node_of_a_workflow_names_its_pack(project: dict) -> None:
    """So that ComfyUI says which pack is missing, instead of red boxes without a name."""
    ours = {"cnr_id": project["project"]["name"], "ver": project["project"]["version"]}
    for path in (ROOT / "workflows").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "MarkdownNote":
                continue
            said = {key: node["properties"].get(key) for key in ours}
            of_the_pack = node["type"].startswith("LatentPhysics")
            assert (said == ours) if of_the_pack else said["cnr_id"] == "comfy-core", (
                path.name,
                node["type"],
            )


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "web" / "docs").rglob("*.md")]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{name_of(page)}: {target}")
    assert not broken, "\n".join(broken)


def run_bare(source: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with the installed packages but without what an editable install put there: `-S` reads no
    .pth file."""
    start = f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r}); "
    command = [sys.executable, "-E", "-s", "-S", "-c", start + source, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


IMPORT_UNDER_ANOTHER_NAME = f"""
import importlib, importlib.util, pathlib
root = pathlib.Path({str(ROOT)!r})
assert importlib.util.find_spec("latent_physics") is None
name = "/some where/any-folder.name"
spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
"""


def test_pack_is_importable_under_any_name_without_comfyui(tmp_path: Path) -> None:
    """As ComfyUI does it: under the folder's absolute path, and not from sys.path."""
    source = (
        IMPORT_UNDER_ANOTHER_NAME
        + "print(module.WEB_DIRECTORY, module.comfy_entrypoint.__name__, len(sys.modules))"
    )
    result = run_bare(source, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:2] == ["./web", "comfy_entrypoint"]


def test_every_room_but_nodes_imports_without_comfyui_and_installation(tmp_path: Path) -> None:
    """All modules of the rooms that nodes load, under a name that is not `latent_physics`."""
    # A dot in a path would be taken for a package's border by the relative imports below.
    source = IMPORT_UNDER_ANOTHER_NAME.replace("/some where/any-folder.name", "any_name") + (
        "for room in ('kernels', 'methods', 'toyworld'):\n"
        "    for path in sorted((root / room).rglob('*.py')):\n"
        "        parts = path.relative_to(root).with_suffix('').parts\n"
        "        if parts[-1] != '__main__':\n"
        "            importlib.import_module('.'.join([name, *(part for part in parts if part != "
        "'__init__')]))\n"
        f"heavy = {sorted(HEAVY | {'comfy', 'latent_physics'})!r}\n"
        "print([module for module in heavy if module in sys.modules])\n"
    )
    result = run_bare(source, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def run_training(*arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    run = f"runpy.run_path({str(ROOT / 'training')!r}, run_name='__main__')"
    source = f"{before}import runpy; sys.argv[0] = 'training'; {run}"
    return run_bare(source, *arguments, cwd=cwd)


def test_a_missing_package_is_one_sentence(tmp_path: Path) -> None:
    result = run_training("cache", "--help", cwd=tmp_path, before="sys.modules['torch'] = None; ")
    assert result.returncode == 1
    expected = (
        "error: latent-physics cache needs torch, which is not installed: install it for your hardware first."
    )
    assert result.stderr.strip() == expected


def test_training_works_from_a_bare_clone(tmp_path: Path) -> None:
    result = run_training("--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    commands = re.findall(r"^  ([\w-]+) +\S", result.stdout.split("commands:")[1], flags=re.M)
    assert {"cache", "predictor"} <= set(commands)
    for page in ("README.md", "docs/training.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not [command for command in commands if f"`{command}`" not in text], page
    for command in commands:
        result = run_training(command, "--help", cwd=tmp_path)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        assert "usage:" in result.stdout


DISTRIBUTIONS = {"PIL": "pillow", "annotated_types": "annotated-types"}
"""Import name -> distribution, where they differ."""
OF_THE_USER = {"torch", "torchvision", "triton"}
"""ComfyUI's installation brings them."""
THROUGH_OTHERS = {"tensorboard": "torch.utils.tensorboard", "deepspeed": "accelerate"}
"""Distribution -> the module of ours to import that needs it."""


def declared() -> set[str]:
    """Distributions that the pack and its training declare."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    imported = ("train", "deepspeed", "quantize", "scenes")
    wanted = [*project["dependencies"], *(text for name in imported for text in extras[name])]
    return {re.match(r"[A-Za-z0-9_-]+", text)[0] for text in wanted}


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    names = {name for path in modules(*MAY_IMPORT) for _, name in imports(path)}
    tops = {name.split(".")[0] for name in names} - {"<pack>", *OF_COMFYUI, *sys.stdlib_module_names}
    used = {DISTRIBUTIONS.get(top, top) for top in tops - OF_THE_USER}
    used |= {
        found for found, through in THROUGH_OTHERS.items() if any(name.startswith(through) for name in names)
    }
    assert used == declared()
