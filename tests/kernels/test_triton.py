"""The Triton twins: their numbers in Triton's interpreter, their compilation for real GPUs, and who decides
to use them.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from latent_physics.kernels import backend
from latent_physics.kernels.selfcheck import mismatch

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


def triton_compiler():
    return pytest.importorskip("triton", reason="needs Triton, which torch's wheels for Linux bring along")


# -- numbers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted():
    """Errors of every twin against float64, by name."""
    triton_compiler()
    program = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_twins_agree_with_float64(interpreted, dtype):
    errors = {name: error for name, error in interpreted.items() if name.endswith(dtype)}
    assert len(errors) >= 4
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE[dtype]} == {}


# -- compilation without a GPU -------------------------------------------------------------------------------

CAPABILITIES = {"A100": 80, "RTX 4090": 89, "H100": 90}
SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
NUMBERS = {"margin": "fp32", "rate": "fp32"}


def kernels_to_compile(features: str) -> list[tuple]:
    """(kernel, constants, whole numbers, pointers to features): what each launch passes for `features` of one
    dtype.
    """
    from latent_physics.kernels.relational import engine_triton

    side = engine_triton.SIDE_WIDE if features == "fp32" else engine_triton.SIDE
    square = {"SIDE": side, "DEPTH": engine_triton.DEPTH, "WIDEN": False}
    strip = {"LINES": engine_triton.LINES, "KEYS": engine_triton.KEYS}
    whole = {"m", "n", "row_frame", "row_per_frame", "column_frame", "column_per_frame"}
    return [
        (engine_triton._scores_kernel, {"channels": 768, **square}, whole, {"a", "b"}),
        (
            engine_triton._l1_kernel,
            {"s_channels": 768, "t_channels": 64, "SAME": False, **square},
            whole,
            {"s_rows", "s_columns", "t_rows", "t_columns", "slope"},
        ),
        (
            engine_triton._softmax_kernel,
            {"per_frame": 600, **strip},
            {"lines", "line_stride", "key_stride"},
            set(),
        ),
        (engine_triton._slope_kernel, {"COLUMNS": True, **strip}, {"m", "n", "per_frame"}, {"slope"}),
    ]


@pytest.mark.parametrize("features", ["bf16", "fp32"])
@pytest.mark.parametrize("device", list(CAPABILITIES))
def test_kernels_compile_and_fit_the_shared_memory(device, features, tmp_path, monkeypatch):
    """Down to machine code: Triton brings its own assembler."""
    triton = triton_compiler()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, constants, whole, pointers in kernels_to_compile(features):
        signature = {}
        for name in kernel.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name in whole:
                signature[name] = "i32"
            else:
                signature[name] = NUMBERS.get(name, f"*{features}" if name in pointers else "*fp32")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        squares = (
            {"num_warps": 8, "num_stages": 2 if features == "fp32" else 3} if "SIDE" in constants else {}
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITIES[device], 32), options=squares)
        assert len(compiled.asm["cubin"]) > 0
        assert compiled.metadata.shared <= SHARED_MEMORY[CAPABILITIES[device]]


# -- on a GPU, where there is one ----------------------------------------------------------------------------


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU; the interpreter checks the same numbers without one",
)
def test_self_check_passes_on_this_gpu():
    assert mismatch(torch.device("cuda")) is None


# -- the decision --------------------------------------------------------------------------------------------


def test_a_cpu_takes_the_tiled_torch_kernels_and_says_so_once(caplog, monkeypatch):
    monkeypatch.delenv(backend.SWITCH, raising=False)
    backend._works_on.cache_clear()
    with caplog.at_level(logging.DEBUG, logger=backend.logger.name):
        assert backend.choose(torch.zeros(1)) == "tiled"
        assert backend.choose(torch.zeros(1)) == "tiled"
    assert [record.getMessage() for record in caplog.records] == [
        "cpu: not an NVIDIA GPU, the tiled torch kernels are used."
    ]


@pytest.mark.parametrize(
    ("kind", "hip", "installed", "capability", "words"),
    [
        ("mps", None, True, (9, 0), "not an NVIDIA GPU"),
        ("xpu", None, True, (9, 0), "not an NVIDIA GPU"),
        ("cuda", "6.4", True, (9, 0), "not an NVIDIA GPU"),
        ("cuda", None, False, (9, 0), "not installed"),
        ("cuda", None, True, (7, 5), "below 8.0"),
    ],
)
def test_reasons_against_triton(monkeypatch, kind, hip, installed, capability, words):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert words in backend._reason_against(kind, 0)


def test_a_twin_that_fails_its_check_is_not_used(monkeypatch):
    """A GPU that Triton cannot compile for: here, one that does not exist."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert "failed its check" in backend._reason_against("cuda", 0)


def test_the_switch(monkeypatch):
    monkeypatch.setenv(backend.SWITCH, "triton")
    assert backend.choose(torch.zeros(1)) == "triton"
    monkeypatch.setenv(backend.SWITCH, "torch")
    assert backend.choose(torch.zeros(1)) == "tiled"
    monkeypatch.setenv(backend.SWITCH, "cuda")
    with pytest.raises(ValueError, match="must be 'torch', 'triton' or unset"):
        backend.choose(torch.zeros(1))


def test_without_triton_the_kernels_import_and_run():
    """In a fresh interpreter where importing Triton fails, as on Windows and macOS."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from latent_physics.kernels.relational import tempered_kl\n"
        "from latent_physics.kernels.drift import drift_loss\n"
        "x = torch.randn(1, 8, 4, requires_grad=True)\n"
        "tempered_kl(x, torch.randn(1, 8, 4), (2, 2, 2)).backward()\n"
        "drift_loss(torch.randn(1, 2, 3, 2, 2), torch.randn(1, 2, 3, 2, 2))\n"
        "assert 'latent_physics.kernels.relational.engine_triton' not in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != backend.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
