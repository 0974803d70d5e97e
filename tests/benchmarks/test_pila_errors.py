"""The table of removed error tells a shrunk correction from a right one and from one that overshoots."""

import pytest
import torch
from latent_physics.benchmarks.pila.errors import factor_and_share, main

GAP = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("scale", "share"), [(1.0, 1.0), (0.2, 0.36), (2.0, 0.0), (-1.0, -3.0)])
def test_the_best_factor_undoes_a_wrong_amplitude(scale, share):
    factor, removed = factor_and_share(GAP, scale * GAP)
    assert factor == pytest.approx(1 / scale)
    assert removed == pytest.approx(share, abs=1e-5)


def test_no_correction_removes_nothing():
    assert factor_and_share(GAP, torch.zeros_like(GAP)) == (0.0, 0.0)


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "absent.safetensors"), "--clips", "1"]) == 1
    assert "absent.safetensors does not exist" in capsys.readouterr().err
