"""What is installed and what works here, found by running a tiny model rather than by looking."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from qcompile.backends.devices import detect
from qcompile.backends.devices_gpu import get_gpu
from qcompile.backends.ort import check_runtime, max_opset, open_session, runtime_version
from qcompile.backends.trt import build_engine
from qcompile.backends.trt_library import find_library
from qcompile.energy_meter import find_meters
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.errors import QCompileError
from qcompile.measure import measure_pair
from qcompile.scratch import scratch_folder

__all__ = ["ABSENT", "BROKEN", "WORKS", "Finding", "examine"]

WORKS, ABSENT, BROKEN = "ok", "absent", "BROKEN"
TEMP_BYTES = 2_000_000_000
AGREES = 0.05
"""Largest relative error of the tiny integer model; a saturating kernel is far above."""

_MODEL = """
<ir_version: 8, opset_import: ["": 17]>
tiny (float[n,64] x) => (float[n,8] y) {{
  {nodes}
}}
"""
_FLOAT = "y = MatMul(x, w)"
_INTEGER = """
  q = QuantizeLinear(x, xs, xz)
  i = QLinearMatMul(q, xs, xz, wq, ws, wz, ys, yz)
  y = DequantizeLinear(i, ys, yz)"""
_QDQ = """
  q = QuantizeLinear(x, xs, wz)
  a = DequantizeLinear(q, xs, wz)
  b = DequantizeLinear(wq, ws, wz)
  y = MatMul(a, b)"""


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: what.
        state: ``WORKS``, ``ABSENT`` (nothing that is there fails) or ``BROKEN``.
        text: what was found, or what to do.
        needed: qcompile cannot work without it.
    """

    name: str
    state: str
    text: str
    needed: bool = False


def examine() -> Iterator[Finding]:
    """Findings as they are made; nothing raises."""
    versions = describe_versions()
    machine = describe_machine()
    yield Finding("python", WORKS, f"{versions['python']} at {sys.executable}")
    packages = ", ".join(f"{n} {v}" for n, v in versions.items() if n != "python")
    yield Finding("packages", WORKS, packages)
    device = detect()
    products = "exact" if device.exact_dot else "saturate, so weights take 7 bits"
    yield Finding(
        "cpu",
        WORKS,
        f"{machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, {device.name} "
        f"({', '.join(device.features) or 'no known features'}); 8-bit products {products}",
    )
    yield _temp_space()
    with scratch_folder() as work:
        yield from _runtime(work)
        yield _tried("tensorrt", lambda: _tensorrt(work))
    yield _tried("gpu", _gpu)
    meters, missing = find_meters()
    reasons = "; ".join(f"{kind}: {why}" for kind, why in missing.items())
    text = ", ".join(m.name for m in meters) or f"not available ({reasons})"
    yield Finding("energy", WORKS if meters else ABSENT, text)
    encoding = (sys.stdout.encoding or "ascii").lower()
    wide = encoding.replace("-", "") in ("utf8", "utf16", "utf32")
    text = encoding if wide else f"{encoding} cannot show every name; set PYTHONIOENCODING=utf-8"
    yield Finding("console", WORKS if wide else ABSENT, text)


def _tried(name: str, act: Callable[[], Finding], needed: bool = False) -> Finding:
    try:
        return act()
    except QCompileError as e:
        return Finding(name, BROKEN, str(e), needed)
    except Exception as e:  # noqa: BLE001 - a broken installation fails in any way; it is reported
        return Finding(name, BROKEN, f"{type(e).__name__}: {' '.join(str(e).split())}", needed)


def _temp_space() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}"
    if free < TEMP_BYTES:
        return Finding(
            "temporary space",
            BROKEN,
            f"{text}; name a roomier folder with TMPDIR (TEMP on Windows)",
        )
    return Finding("temporary space", WORKS, text)


def _runtime(work: Path) -> Iterator[Finding]:
    def installed() -> Finding:
        check_runtime()
        text = f"{runtime_version()}, opens opset {max_opset()}"
        return Finding("onnx runtime", WORKS, text, needed=True)

    found = _tried("onnx runtime", installed, needed=True)
    yield found
    if found.state != WORKS:
        return
    yield _tried("integer kernels", lambda: _kernels(work), needed=True)
    yield _tried("measuring process", lambda: _measuring(work), needed=True)


def _kernels(work: Path) -> Finding:
    """A product of 8-bit numbers beside the float one, at values where weak kernels saturate."""
    feed = {"x": np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 64)}
    ref = open_session(_write(work / "float.onnx", _FLOAT), threads=1).run(feed)["y"]
    got = open_session(_write(work / "integer.onnx", _INTEGER), threads=1).run(feed)["y"]
    error = float(np.max(np.abs(got - ref)) / np.max(np.abs(ref)))
    if error > AGREES:
        text = f"a tiny product is wrong by {error:.0%}; reinstall ONNX Runtime"
        return Finding("integer kernels", BROKEN, text, needed=True)
    return Finding("integer kernels", WORKS, f"a tiny product is right to {error:.1%}", needed=True)


def _measuring(work: Path) -> Finding:
    feed = {"x": np.zeros((1, 64), np.float32)}
    speed = measure_pair(
        work / "float.onnx", work / "integer.onnx", [feed], threads=1, budget_s=0.2, load=False
    )
    text = f"timed {speed.models['float'].runs} runs in a process of its own"
    return Finding("measuring process", WORKS, text, needed=True)


def _tensorrt(work: Path) -> Finding:
    library = find_library()
    if library is None:
        text = "not installed; `pip install qcompile[tensorrt]` checks models for NVIDIA GPUs"
        return Finding("tensorrt", ABSENT, text)
    able = library.capabilities()
    capability = "SM89" if "SM89" in able else next(iter(able), "")
    shapes = {"x": ((1, 64), (1, 64), (4, 64))}
    build = build_engine(_write(work / "qdq.onnx", _QDQ), library, shapes, capability)
    where = f"for {capability} ahead of time" if capability else "for this GPU"
    text = f"{library.name} {library.version} built a tiny engine {where} in {build.seconds:.1f} s"
    return Finding("tensorrt", WORKS, text)


def _gpu() -> Finding:
    gpu = get_gpu()
    if gpu.assumed:
        return Finding("gpu", ABSENT, "no NVIDIA GPU; engines are checked, not run")
    return Finding("gpu", WORKS, f"compute capability {gpu.capability / 10:.1f}")


def _write(path: Path, nodes: str) -> Path:
    """A model with the constants that its nodes name."""
    weight = np.where(np.arange(64 * 8).reshape(64, 8) % 3, 1.0, -0.5).astype(np.float32)
    named = {
        "w": weight,
        "wq": np.round(weight * 127).astype(np.int8),
        "ws": np.float32(1 / 127),
        "wz": np.int8(0),
        "xs": np.float32(2 / 255),
        "xz": np.uint8(128),
        "ys": np.float32(80 / 255),
        "yz": np.uint8(128),
    }
    model = onnx.parser.parse_model(_MODEL.format(nodes=nodes))
    read = {name for node in model.graph.node for name in node.input}
    for name, array in named.items():
        if name in read:
            tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
            model.graph.initializer.append(tensor)
    onnx.save(model, path)
    return path
