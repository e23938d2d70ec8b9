"""Who may import whom: ir <- passes | calibrators | backends <- qcompile <- cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("passes", "calibrators", "backends")
FILES = sorted(p for f in ("qcompile", *FOLDERS) for p in (ROOT / f).rglob("*.py"))
FILES = [p for p in FILES if not any(q.is_symlink() for q in p.parents)]
RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "polygraphy", "torch")
OTHER_QUANTIZERS = ("onnxruntime.quantization", "nncf", "modelopt", "onnx_graphsurgeon", "olive")
IR_MAY = ("qcompile.ir", "onnx", "onnx_ir", "numpy", "ml_dtypes")  # and the standard library
LINES = 400
LONG: dict[str, str] = {}  # file -> why it is one idea all the same


def name_of(path: Path) -> str:
    """`qcompile.passes.fold` of passes/fold.py: the one name under which it is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "qcompile" else ("qcompile", *parts))


def imports(path: Path) -> Iterator[str]:
    """Every imported name, those inside functions too; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import, write it out"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...] | list[str]) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def forbidden(module: str, name: str) -> str | None:
    """Why the module must not import the name, or None."""
    ours = name.startswith("qcompile")
    above = [f"qcompile.{f}" for f in FOLDERS]
    if within(name, list(FOLDERS)):
        return "code folders are imported through qcompile"
    if within(name, OTHER_QUANTIZERS):
        return "no other quantizer"
    if within(name, ["qcompile.cli"]) and not within(module, ["qcompile.cli", "qcompile.__main__"]):
        return "nothing imports the command line"
    if within(name, ["tensorrt", "tensorrt_rtx"]) and module != "qcompile.backends.trt":
        return "TensorRT belongs to backends/trt.py"
    if within(module, ["qcompile.ir"]) and (ours or within(name, RUNTIMES)):
        return None if within(name, IR_MAY) else "ir stands on the ground"
    for folder in above:
        if within(module, [folder]) and ours and not within(name, ["qcompile.ir", folder]):
            return f"{folder} sees ir alone"
    if within(module, ["qcompile.passes", "qcompile.calibrators"]) and within(name, RUNTIMES):
        return "only a backend knows a runtime"
    return None


def test_imports_go_downwards() -> None:
    wrong = []
    for path in FILES:
        module = name_of(path).removesuffix(".__init__")
        found = {name: forbidden(module, name) for name in imports(path)}
        wrong += [f"{module} imports {name}: {why}" for name, why in found.items() if why]
    assert not wrong


def test_the_rules_bite() -> None:
    for module, name in (
        ("qcompile.ir.graph", "qcompile.passes.fold"),
        ("qcompile.ir.graph", "qcompile.gate"),
        ("qcompile.ir.graph", "onnxruntime.InferenceSession"),
        ("qcompile.passes.fold", "qcompile.backends.ort"),
        ("qcompile.calibrators.kl", "qcompile.passes"),
        ("qcompile.backends.ort", "qcompile.compile"),
        ("qcompile.gate", "qcompile.cli.main"),
        ("qcompile.backends.ort", "tensorrt.Builder"),
        ("qcompile.gate", "passes.fold"),
        ("qcompile.passes.fold", "onnxruntime.quantization"),
    ):
        assert forbidden(module, name), f"{module} may import {name}"
    for module, name in (
        ("qcompile.passes.fold", "qcompile.ir.graph"),
        ("qcompile.backends.trt", "tensorrt_rtx"),
        ("qcompile.compile", "qcompile.backends.ort"),
        ("qcompile.cli", "qcompile.compile"),
        ("qcompile.ir.graph", "onnx_ir"),
    ):
        assert forbidden(module, name) is None, f"{module} may not import {name}"


def test_no_file_without_one_idea() -> None:
    named = [p for p in FILES if p.stem in {"utils", "util", "helpers", "helper", "common", "misc"}]
    assert not named, "name a module after what is in it"


def test_files_are_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in FILES}
    long = {name: lines for name, lines in lengths.items() if lines > LINES and name not in LONG}
    assert not long, "probably two ideas: split, or give the reason in LONG"
    assert all(lengths.get(name, 0) > LINES for name in LONG), "short again: take it off LONG"


def test_the_measuring_process_imports_no_model_library() -> None:
    """Each of its starts would take half a second longer."""
    code = "import sys, qcompile.worker; print(sorted({'onnx', 'onnx_ir', 'sympy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
