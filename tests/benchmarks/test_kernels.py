"""The benchmarks compare like with like, and their command shows what they found."""

from __future__ import annotations

import json

import torch
from latent_physics.benchmarks.kernels import __main__ as command
from latent_physics.benchmarks.kernels import measure
from latent_physics.benchmarks.kernels import relational as benchmark
from latent_physics.kernels import relational
from latent_physics.training.commands import bench


def test_every_variant_computes_the_same_loss():
    shape = {"grid": [3, 3, 5], "channels": 12}
    for kernel in benchmark.KERNELS:
        values = {}
        for variant in kernel.variants:
            torch.manual_seed(0)
            if "VideoREPA" not in variant and "compiled" not in variant:
                values[variant] = kernel.prepare(variant, "cpu", **shape)()
        assert len(values) >= 2
        for value in values.values():
            torch.testing.assert_close(value, values["ours"], rtol=1e-4, atol=1e-7)


def test_the_peers_formula_is_the_one_mean_over_all_pairs():
    grid = (3, 2, 4)
    student, teacher = torch.randn(2, 24, 6, dtype=torch.float64), torch.randn(2, 24, 6, dtype=torch.float64)
    spatial, temporal = relational.relation_l1(student, teacher, grid, None, 0.1)
    torch.testing.assert_close(benchmark.videorepa(student, teacher, grid), spatial / 3 + temporal)


def test_a_measurement_in_its_own_process():
    shape = {"grid": [2, 4, 4], "channels": 8}
    options = {"device": "cpu", "threads": 1, "repeat": 1, "clock": "wall"}
    found = measure.measure(benchmark.__name__, "tempered KL", "ours", shape, **options)
    assert found.note == ""
    assert found.seconds > 0
    broken = measure.measure(benchmark.__name__, "no such kernel", "ours", shape, **options)
    assert "no such kernel" in broken.note


RESULTS = {
    "machine": "a test",
    "limits": {"products": 1e11, "mm": 5e10, "memory": 1e10},
    "rows": [
        {
            "kernel": "TRD",
            "what": "",
            "shape": "2x2x2 (N = 8), C = 4",
            "floor": 0.5,
            "limit": "arithmetic",
            "found": {
                "ours": {"seconds": 1.0, "peak": 10.0, "note": ""},
                "definition": {"seconds": 4.0, "peak": 100.0, "note": ""},
                "VideoREPA's formula": {
                    "seconds": float("nan"),
                    "peak": float("nan"),
                    "note": "cannot allocate",
                },
            },
        }
    ],
    "growth": [
        {
            "kernel": name,
            "variant": variant,
            "tokens": tokens,
            "seconds": 1.0,
            "peak": tokens / 10,
            "note": note,
        }
        for name, variant, notes in (
            ("TRD", "ours", ("", "")),
            ("tempered KL", "ours", ("", "")),
            ("TRD", "VideoREPA's formula", ("", "cannot allocate")),
        )
        for tokens, note in zip((1000, 2000), notes)
    ],
}


def test_the_table_and_the_plot(tmp_path):
    text = command.render(RESULTS)
    assert (
        "| TRD | 2x2x2 (N = 8), C = 4 | 1.00 s | 10 MiB | definition | 0.25 | 0.100 | 0.50 s (arithmetic) | "
        "50% |" in text
    )
    assert "cannot allocate" in text
    command.draw(RESULTS["growth"], tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_stored_results(capsys, tmp_path):
    stored = tmp_path / "results.json"
    assert bench.main(["--show", "--results", str(stored)]) == 1
    assert "no stored results" in capsys.readouterr().err
    stored.write_text(json.dumps(RESULTS))
    assert bench.main(["--show", "--results", str(stored)]) == 0
    assert "| TRD | 2x2x2" in capsys.readouterr().out


def test_the_command_says_where_it_must_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "kernels")
    assert bench.main([]) == 1
    assert "run this from a clone" in capsys.readouterr().err
