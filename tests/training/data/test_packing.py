"""Shards: the same clips as a folder of files, in the same order, to the bit; and what is no shard."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from latent_physics.tests.training.finetune import tiny_run
from latent_physics.training.backbones.lora import TuneConfig
from latent_physics.training.commands.pack import main
from latent_physics.training.console import ProgressLine, StopRequest, TrainingError
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import DatasetError, read_clip
from latent_physics.training.data.clips import Clips
from latent_physics.training.data.folder import ClipFolder
from latent_physics.training.data.packing import PackConfig, pack
from latent_physics.training.data.shards import check_no_shards, clip_name, member_name
from latent_physics.training.loop.loop import train

QUIET = ProgressLine("pack", io.StringIO())


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven clips of two sizes; one has dots in its name."""
    (tmp_path / "files").mkdir()
    made = tiny_run.clips(tmp_path / "files", ((3, 4, 4),) * 4 + ((2, 4, 6),) * 3)
    (made / "clip3.safetensors").rename(made / "a.clip.of.2019-w000.safetensors")
    return made


def packed(folder, clips=3, name="shards") -> Path:
    pack(PackConfig(data=folder, out=folder.parent / name, clips=clips), progress=QUIET)
    return folder.parent / name


def same(left, right):
    assert left.names == right.names
    for name in ("latent", "tokens", "mask"):
        assert torch.equal(getattr(left, name), getattr(right, name))


# --- the same clips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [1, 3, 100])
def test_batches_are_those_of_the_folder_to_the_bit(folder, clips):
    shards = packed(folder, clips)
    assert len(list(shards.iterdir())) == -(-7 // clips)
    files, tars = (TrainingClips(place, batch=2, seed=3, held_out=0.2) for place in (folder, shards))
    assert tars.fingerprint() == files.fingerprint()
    assert (tars.training, tars.validation) == (files.training, files.validation)
    for number in range(12):  # several epochs
        assert tars.chosen(number) == files.chosen(number)
        same(tars.read(tars.chosen(number)), files.read(files.chosen(number)))
    for entry, file in zip(tars.entries, files.entries, strict=True):
        assert (entry.info, entry.shape, entry.identity) == (file.info, file.shape, file.identity)


def test_a_motion_predictors_clips_are_the_same(folder):
    for path in folder.glob("clip[456].safetensors"):
        path.unlink()  # one size
    shards = packed(folder)
    files = Clips.from_folder(folder)
    for memory in (4.0, 0.0):  # all in memory, and read as they are asked for
        tars = Clips.from_folder(shards, memory_gb=memory)
        assert tars.fingerprint() == files.fingerprint()
        assert torch.equal(tars.conds, files.conds)
        assert all(torch.equal(tars.frames(clip, [2, 0]), files.frames(clip, [2, 0])) for clip in range(4))


def test_a_run_goes_on_with_shards_where_it_stopped_with_files(tmp_path, folder):
    settings = {"tune": TuneConfig(rank=2, alpha=2), "validate_every": 100, "save_every": 2}
    whole = train(tiny_run.make_run(tmp_path / "whole", folder, **settings), progress=QUIET)
    stop = StopRequest()

    class Stops(ProgressLine):
        def show(self, fraction, *_):
            stop.asked = fraction >= 0.5

    first = train(
        tiny_run.make_run(tmp_path / "half", folder, **settings), stop, Stops("train", io.StringIO())
    )
    assert first.stopped
    second = train(tiny_run.make_run(tmp_path / "half", packed(folder), **settings), progress=QUIET)
    tensors = [safetensors.torch.load_file(outcome.checkpoint) for outcome in (whole, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_packing_again_gives_the_same_bytes_and_repacking_too(folder):
    first, second = packed(folder, 3), packed(folder, 3, "second")
    repacked = packed(packed(folder, 2, "pairs"), 3, "repacked")
    assert packed(folder, 3) == first  # over what is there
    contents = [
        {path.name: path.read_bytes() for path in place.glob("*.tar")} for place in (first, second, repacked)
    ]
    assert contents[0] == contents[1] == contents[2]
    assert sorted(contents[0]) == ["clips-000000.tar", "clips-000001.tar", "clips-000002.tar"]


def test_members_are_the_clips_files(folder):
    """By Python's own tarfile."""
    found = {}
    for shard in packed(folder).glob("*.tar"):
        with tarfile.open(shard) as tar:
            found |= {clip_name(member.name): tar.extractfile(member).read() for member in tar}
    assert found == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_webdataset_reads_them(folder):
    """Every clip is a sample of its own: its key ends at the first dot."""
    webdataset = pytest.importorskip("webdataset", reason="needs the development extra")
    urls = sorted(map(str, packed(folder).glob("*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 7
    for sample in samples:
        name = clip_name(f"{sample['__key__']}.safetensors")
        latent = safetensors.torch.load(sample["safetensors"])["latent"]
        assert torch.equal(latent, read_clip(folder / name).latent)


def test_names_come_back():
    for name in ("a.safetensors", "a.b.c-w000.safetensors", "a-0123456789ab-w012.safetensors"):
        assert clip_name(f"some/folder/{member_name(name)}") == name
        assert member_name(name).count(".") == 1


# --- what does not fit --------------------------------------------------------------------------------------


def refused(folder, sentence):
    with pytest.raises(DatasetError, match=sentence) as caught:
        ClipFolder.scan(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 600, 5000, -1, -512, -1024, -1536])
def test_a_shard_that_was_cut_off_is_one_sentence(folder, keep):
    shard = packed(folder, 100) / "clips-000000.tar"
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(shard.parent, r"clips-000000\.tar is no readable tar of cached clips .*pack the clips again")


def test_foreign_tars_are_one_sentence(folder):
    place = folder.parent / "foreign"
    place.mkdir()
    shard = place / "x.tar"

    def write(**members):
        with tarfile.open(shard, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name.replace("_", "."))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    write(a_jpg=b"picture", a_json=b"{}")
    refused(place, r"x\.tar holds no cached clip; pack the clips again")
    write(a_safetensors=b"no tensors at all")
    refused(place, r"a\.safetensors is not a readable safetensors file .*pack the clips again")
    write(a_safetensors=b"")
    refused(place, r"a\.safetensors is not a readable safetensors file")
    write(a_safetensors=safetensors.torch.save({"latent": torch.zeros(2)}))
    refused(place, r"a\.safetensors carries no latent_physics metadata")
    shard.write_bytes(gzip.compress((packed(folder) / "clips-000000.tar").read_bytes()) + bytes(2048))
    refused(place, r"x\.tar is no readable tar")
    shard.write_bytes(b"<!DOCTYPE html>" + bytes(4096))
    refused(place, r"x\.tar is no readable tar")


def test_a_damaged_member_is_one_sentence_when_it_is_read(folder):
    shard = packed(folder, 100) / "clips-000000.tar"
    clips = TrainingClips(shard.parent, batch=1, seed=0)
    data = bytearray(shard.read_bytes())
    offset, size = clips.entries[2].span
    shard.write_bytes(bytes(data[: offset + size // 2]))  # cut off while the run is on
    with pytest.raises(DatasetError, match=r"clip1\.safetensors or its features cannot be read"):
        clips.read([2])
    shard.unlink()
    with pytest.raises(DatasetError, match=r"clips-000000\.tar does not exist"):
        clips.read([2])


def test_a_clip_that_is_there_twice_and_a_cache_into_shards_are_one_sentence(folder):
    shards = packed(folder)
    (shards / "clip0.safetensors").write_bytes((folder / "clip0.safetensors").read_bytes())
    refused(shards, r"clip0\.safetensors is in .* and in .*; keep the files or their shards")
    with pytest.raises(TrainingError, match=r"holds shards .*; cache into the folder that they were packed"):
        check_no_shards(shards)
    check_no_shards(folder)


def test_the_command(folder, capsys):
    out = folder.parent / "out"
    words = ["--data", str(folder), "--out", str(out)]
    assert main([*words, "--clips", "4"]) == 0
    assert "Packed: 7 clips in 2 shards" in capsys.readouterr().out
    assert main([*words, "--clips", "7"]) == 1  # the second shard would be left over
    assert "which holds clips-000001.tar; give an empty folder" in capsys.readouterr().err
    assert main(["--data", str(folder), "--out", str(folder)]) == 1
    assert "give an empty folder" in capsys.readouterr().err
    assert main([*words, "--clips", "0"]) == 1
    assert "clips is 0; it must be at least 1" in capsys.readouterr().err
    assert main(["--data", str(out.parent / "none"), "--out", str(out)]) == 1
    assert "is not a folder" in capsys.readouterr().err
    stop = StopRequest()
    stop.asked = True
    stopped = pack(PackConfig(data=folder, out=folder.parent / "later"), stop, QUIET)
    assert (stopped.stopped, stopped.shards) == (True, [])
