"""The one writer: what it writes is safetensors, readable by others, whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import weakref

import pytest
import torch
from latent_physics.methods.weights import DTYPES, WeightsInfo, load_weights, save_weights, write_tensors
from safetensors.torch import load_file

INFO = WeightsInfo(kind="test", latent_space="toy", config={"width": 3})


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {str(dtype): (100 * torch.rand(3, 5, generator=generator)).to(dtype) for dtype in DTYPES}
    return found | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.rand(4, 3).T}


def test_every_number_format_is_read_back_bit_for_bit_by_safetensors(tmp_path):
    state, path = tensors(), tmp_path / "deep" / "file.safetensors"
    save_weights(path, state, INFO)
    found = load_file(path)
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        assert found[key].shape == value.shape
        assert (
            found[key]
            .contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(value.contiguous().view(-1).view(torch.uint8))
        ), key
    assert load_weights(path, "test")[1] == INFO


def test_tensors_are_brought_to_the_cpu_one_after_another(tmp_path):
    """A second one only once the first is gone: of a large model only one tensor is in memory twice."""
    copies = []

    def whole(value):
        assert all(reference() is None for reference in copies[:-1])
        copy = value.clone()
        copies.append(weakref.ref(copy))
        return copy

    write_tensors(
        tmp_path / "file", {name: torch.full((2,), float(i)) for i, name in enumerate("abcd")}, INFO, whole
    )
    assert len(copies) == 4
    assert load_file(tmp_path / "file")["d"].tolist() == [3.0, 3.0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_a_file(tmp_path, mask, mode):
    """ComfyUI often runs as another user than the one who trained."""
    old = os.umask(mask)
    try:
        save_weights(tmp_path / "file", tensors(), INFO)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_an_interrupted_write_leaves_the_older_file_and_nothing_else(tmp_path):
    save_weights(tmp_path / "file", tensors(), INFO)
    before = (tmp_path / "file").read_bytes()

    def full(value):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "file", tensors(), INFO, full)
    assert (tmp_path / "file").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
