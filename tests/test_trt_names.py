"""Every name of TensorRT's API that device.py and backends/trt.py use exists in the real bindings.

TensorRT for RTX is looked at where it is installed. TensorRT's own libraries are not on PyPI, but its
bindings are, and those load against libraries of stubs. To look at some, unpack their wheels and run

    pip download --no-deps tensorrt-cu13-bindings==10.16.1.11 && unzip -d 10.16 tensorrt_cu13_bindings-*.whl
    QCOMPILE_TENSORRT_BINDINGS=10.16:11.4 python -m pytest tests/test_trt_names.py
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qcompile
from qcompile.backends.trt_library import find_library

PACKAGE = Path(qcompile.__file__).parent
SOURCES = (PACKAGE / "deploy" / "device.py", PACKAGE / "backends" / "trt.py")
BINDINGS = [
    Path(p) for p in os.environ.get("QCOMPILE_TENSORRT_BINDINGS", "").split(os.pathsep) if p
]

KINDS = {
    "trt": "",
    "api": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "inspector": "EngineInspector",
}
"""Variable in the sources -> class of the API; "" is the module itself."""

FLAGS = {"BuilderFlag.REFIT", "BuilderFlag.SPARSE_WEIGHTS", "BuilderFlag.VERSION_COMPATIBLE"}
GUARDED = frozenset(
    {"ComputeCapability", "IBuilderConfig.num_compute_capabilities"}
    | {"IBuilderConfig.set_compute_capability", "IBuilderConfig.create_timing_cache"}
    | {"IBuilderConfig.set_timing_cache", "IBuilderConfig.get_timing_cache"}
    | {"Runtime.engine_host_code_allowed", "ICudaEngine.feed", "ICudaEngine.execute"}
    | {"ICudaEngine.run", "ICudaEngine.engine"}
)
"""Used behind a test of their presence, or methods of our own class Engine."""

LOOK = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("tensorrt", sys.argv[1])
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)
missing = []
for name in json.loads(sys.argv[2]):
    found = api
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        missing.append(name)
print(json.dumps(missing))
"""


def _used() -> list[str]:
    """ "Builder.create_network", "MemoryPoolType.WORKSPACE", ... as the sources write them."""
    names = set(FLAGS)
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # argparse has a "parser" too, and the CUDA runtime is an "api"
        tree.body = [n for n in tree.body if getattr(n, "name", "") not in ("main", "Cuda")]
        for node in ast.walk(tree):
            parts: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.insert(0, inner.attr)
                inner = inner.value
            if not isinstance(inner, ast.Name) or not parts:
                continue
            if inner.id == "self" and len(parts) > 1:
                inner, parts = ast.Name(parts[0]), parts[1:]
            kind = KINDS.get(inner.id)
            if kind is not None and not parts[0].startswith("__"):
                names.add(".".join([kind, parts[0]] if kind else parts[:2]))
    return sorted(name for name in names if name not in GUARDED)


def test_the_names_are_found_in_the_sources() -> None:
    used = _used()
    assert len(used) > 30
    assert {"Builder.build_serialized_network", "MemoryPoolType.WORKSPACE"} <= set(used)
    assert not any(word in name for name in used for word in ("INT8", "FP16", "Calibrator"))


def test_tensorrt_for_rtx_has_them() -> None:
    library = find_library(ahead_of_time=True)
    if library is None:
        pytest.skip("tensorrt-rtx is not installed")
    for name in [*_used(), "ComputeCapability", "IBuilderConfig.set_compute_capability"]:
        found = library.api
        for part in name.split("."):
            assert hasattr(found, part), f"{library.name} {library.version} has no {name}"
            found = getattr(found, part)


@pytest.mark.skipif(not BINDINGS, reason="QCOMPILE_TENSORRT_BINDINGS names no unpacked bindings")
@pytest.mark.parametrize("folder", BINDINGS, ids=lambda p: p.name)
def test_the_bindings_have_them(folder: Path, tmp_path: Path) -> None:
    if not all(map(shutil.which, ("cc", "nm", "readelf"))):
        pytest.skip("cc, nm and readelf make the stubs")
    (module,) = folder.glob("tensorrt*/tensorrt*.so")
    needed = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True)
    wanted = subprocess.run(["nm", "-D", "-u", module], capture_output=True, text=True, check=True)
    symbols = [line.split()[-1] for line in wanted.stdout.splitlines() if "@" not in line]
    lines = [f'void *stub{i}(void) __asm__("{s}"); void *stub{i}(void) {{ return 0; }}'
             for i, s in enumerate(symbols) if not s.startswith(("__", "_ITM"))]  # fmt: skip
    source = tmp_path / "stubs.c"
    source.write_text("\n".join(lines))
    for line in needed.stdout.splitlines():
        name = line.rpartition("[")[2].rstrip("]")
        if name.startswith("libnv"):
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", tmp_path / name, source],
                check=True,
            )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", LOOK, str(module), json.dumps(_used())],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    python = (module.parent / "__init__.py").read_text(encoding="utf-8")
    assert [name for name in json.loads(run.stdout) if f"def {name}(" not in python] == []
