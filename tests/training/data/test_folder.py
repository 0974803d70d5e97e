"""One reader and one writer of cached clips: every view of a folder sees the same clips, toys are written as
films are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from latent_physics.methods.lamo import pool_tokens
from latent_physics.training.data.batches import TrainingClips
from latent_physics.training.data.clip import ClipInfo, DatasetError, read_clip, write_clip
from latent_physics.training.data.clips import Clips
from latent_physics.training.data.folder import ClipFolder, Epochs, split_films
from latent_physics.training.data.toy import write_toy_clip
from latent_physics.training.tasks.pila.data import cached_clips, shuffled_index


def cached(path: Path, film: str, window: int = 0, space: str = "toy", width: int = 3) -> None:
    info = ClipInfo(
        source=f"{film}.mp4", source_hash=film, key=f"{film} {window}", caption="a ball", caption_from="file",
        window=window,
        last=True, start=0.0, frames=9, width=16, height=16, fps=8.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(len(film) + window)
    latent, tokens = torch.randn(4, 3, 6, 6, generator=generator), torch.randn(5, width, generator=generator)
    write_clip(path, latent, tokens.mean(dim=0), info, space, tokens=tokens)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five windows of three films."""
    for film, window in (("b", 0), ("a", 0), ("a", 1), ("c", 0), ("c", 1)):
        cached(tmp_path / f"{film}-w{window:03}.safetensors", film, window)
    return tmp_path


def test_every_view_of_a_folder_sees_the_same_clips(folder):
    found = ClipFolder.scan(folder)
    names = ["a-w000", "a-w001", "b-w000", "c-w000", "c-w001"]
    assert [entry.path.stem for entry in found.entries] == names
    clips, batches = Clips.from_folder(folder), TrainingClips(folder, batch=1, seed=3, held_out=0.3)
    backbone = SimpleNamespace(latent_space="toy")
    examples = cached_clips(folder, folder / "flow", "latent", backbone)
    assert clips.names == [path + ".safetensors" for path in names] == examples.names
    assert (batches.training, batches.validation) == clips.split(0.3, 3) == found.split(0.3, 3)
    for index, entry in enumerate(found.entries):
        stored = read_clip(entry.path)
        batch = batches.read([index])
        example = examples.load(index)
        assert torch.equal(stored.latent, clips.latent(index))
        assert torch.equal(stored.latent, batch.latent[0])
        assert torch.equal(stored.latent, example.latent)
        assert torch.equal(stored.tokens, batch.tokens[0])
        assert torch.equal(stored.tokens, example.tokens)
        assert torch.equal(stored.cond, clips.conds[index])
        assert torch.equal(stored.cond, example.cond)


@pytest.mark.parametrize(
    "read", [Clips.from_folder, lambda folder: TrainingClips(folder, batch=1, seed=0), ClipFolder.scan]
)
def test_every_view_refuses_the_same_folders(folder, read):
    cached(folder / "d-w000.safetensors", "d", space="wan2.1")
    with pytest.raises(
        DatasetError, match=r"mixes latent spaces toy and wan2\.1; keep one folder for each backbone"
    ):
        read(folder)
    cached(folder / "d-w000.safetensors", "d", width=7)
    with pytest.raises(DatasetError, match=r"mixes prompt embeddings of widths \[3, 7\]"):
        read(folder)
    (folder / "d-w000.safetensors").write_bytes(b"cut off")
    with pytest.raises(DatasetError, match=r"d-w000\.safetensors .* run the cache command again"):
        read(folder)
    with pytest.raises(DatasetError, match="is not a folder; make it with: latent-physics cache"):
        read(folder / "gone")


def test_windows_of_a_film_stay_on_one_side():
    films = ["b", "a", "a", "c", "c"]
    for seed in range(20):
        training, held = split_films(films, 0.4, seed)
        assert sorted(training + held) == [0, 1, 2, 3, 4]
        assert not {films[index] for index in training} & {films[index] for index in held}
        assert len({films[index] for index in held}) == 1
    assert split_films(films, 0.0, 0) == ([0, 1, 2, 3, 4], [])
    with pytest.raises(DatasetError, match="Of 1 clips 1 would be held out, which leaves none to train on"):
        split_films(["a", "a"], 0.1, 0)


def test_epochs_are_those_of_earlier_versions():
    """Written out: runs that were begun before there was one class for it go on with the clips that they
    would have seen."""
    epochs = Epochs(7, seed=5)
    expected = np.concatenate([np.random.default_rng((5, epoch)).permutation(7) for epoch in range(4)])
    assert [epochs[number] for number in range(28)] == expected.tolist()
    assert epochs[3] == expected[3], "an earlier place, asked for again"
    remembered: dict = {}
    assert [shuffled_index(number, 7, 5, remembered) for number in range(28)] == expected.tolist()
    assert len(remembered) == 1


def test_toy_clips_are_written_as_films_are(tmp_path):
    class Backbone:
        latent_space = "toy"

        def encode_video(self, video):
            return torch.nn.functional.avg_pool3d(video[:, :, 1:], (4, 8, 8))

    clip, tokens, mask = (
        torch.rand(3, 9, 16, 16),
        torch.randn(6, 3),
        torch.tensor([True, True, False, True, False, False]),
    )
    write_toy_clip(
        tmp_path / "toy.safetensors", Backbone(), clip, "a ball", tokens, mask, source="rigid_body-1"
    )
    found = ClipFolder.scan(tmp_path)
    stored = read_clip(found.entries[0].path)
    frames = (clip * 255).round() / 255
    torch.testing.assert_close(stored.latent, Backbone().encode_video(frames[None])[0])
    assert torch.equal(stored.tokens, tokens[mask])
    torch.testing.assert_close(stored.cond, pool_tokens(tokens[None], mask[None])[0])
    assert (stored.info.source, stored.info.frames, stored.info.caption) == ("rigid_body-1", 9, "a ball")
    assert (tmp_path / "frames" / "toy.safetensors").is_file()
