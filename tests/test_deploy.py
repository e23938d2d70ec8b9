"""deploy/: what runs an artifact without qcompile, in Python and in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import qcompile
from qcompile.deploy_files import save_samples

DEPLOY = Path(qcompile.__file__).parent / "deploy"

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[2,3] a, int64[N] b, float16[1] h, bool[2] t)
  => (float[2,3] y, int64[N] c, float16[1] k, bool[2] u) {
  y = Relu(a)
  c = Add(b, b)
  k = Identity(h)
  u = Not(t)
}
"""
TENSOR = 'ä "x"\\'  # names are any text

Feed = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A model of several dtypes with its samples, as an artifact holds them; the deploy folder."""
    proto = onnx.parser.parse_model(MODEL)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = TENSOR
    onnx.save(proto, tmp_path / "model.onnx")
    deploy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, deploy, ignore=shutil.ignore_patterns("__pycache__"))
    feed: Feed = {
        TENSOR: np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3) - 1),
        "b": np.zeros(0, np.int64),
        "h": np.array([1.5], np.float16),
        "t": np.array([True, False]),
    }
    import onnxruntime as ort

    session = ort.InferenceSession(tmp_path / "model.onnx")
    names = [o.name for o in session.get_outputs()]
    outputs: Feed = dict(zip(names, session.run(names, feed), strict=True))
    save_samples(deploy / "sample_in.npz", [feed, feed])
    save_samples(deploy / "sample_out.npz", [outputs, outputs])
    return deploy


def spoil(deploy: Path, value: float) -> None:
    """Store another output than the model gives."""
    with np.load(deploy / "sample_out.npz") as stored:
        arrays = dict(stored)
    arrays["1_0"] = np.full_like(arrays["1_0"], value)
    with (deploy / "sample_out.npz").open("wb") as file:
        np.savez(file, **arrays)


def run_py(deploy: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(deploy / "run.py"), "--time", "0.01", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_equal_outputs(artifact: Path) -> None:
    done = run_py(artifact)
    assert done.returncode == 0, done.stderr
    assert "2 stored samples: outputs agree" in done.stdout


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_other_outputs(artifact: Path, value: float) -> None:
    spoil(artifact, value)
    done = run_py(artifact)
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main.cc, compiled against a release of ONNX Runtime for C++ where $ORT_HOME names one."""
    home, compiler = os.environ.get("ORT_HOME"), shutil.which("g++") or shutil.which("clang++")
    if home is None or compiler is None:
        pytest.skip("needs a C++ compiler and ORT_HOME, a release of ONNX Runtime for C++")
    out = tmp_path_factory.mktemp("cc") / "main"
    lib = Path(home) / "lib"
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", str(DEPLOY / "main.cc")]
    command += ["-isystem", str(Path(home) / "include"), "-L", str(lib), f"-Wl,-rpath,{lib}"]
    done = subprocess.run(
        [*command, "-lonnxruntime", "-o", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return out


def run_cc(program: Path, deploy: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program), "--time", "0.01", "--threads", "1", str(deploy)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_cc_equal_outputs(program: Path, artifact: Path) -> None:
    done = run_cc(program, artifact)
    assert done.returncode == 0, done.stderr
    assert "2 stored samples" in done.stdout
    assert "output y: agrees to inf dB" in done.stdout
    assert "output u: 0 of 4 integers differ" in done.stdout


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_cc_other_outputs(program: Path, artifact: Path, value: float) -> None:
    spoil(artifact, value)
    done = run_cc(program, artifact)
    assert done.returncode == 1
    assert "DIFFERENT" in done.stdout


@pytest.mark.parametrize("keep", [0, 10, 500, -30])
def test_cc_a_damaged_archive_is_an_error(program: Path, artifact: Path, keep: int) -> None:
    stored = artifact / "sample_in.npz"
    stored.write_bytes(stored.read_bytes()[:keep])
    done = run_cc(program, artifact)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
