"""The oldest ONNX Runtime that opens a model, and what --min-ort makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import qcompile
from qcompile.cli import main
from qcompile.ir.errors import OptionError
from qcompile.oldest_runtime import limits_of, oldest_runtime, parse_release
from qcompile.options import make_options

MATMUL = """
<ir_version: {ir}, opset_import: ["": {opset}]>
g (float[N,16] x) => (float[N,8] y) {{
  y = MatMul(x, w)
}}
"""


def matmul(ir: int = 8, opset: int = 13) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MATMUL.format(ir=ir, opset=opset))
    w = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return proto


@pytest.mark.parametrize(
    ("ir", "opset", "release", "because"),
    [
        (7, 13, "1.8", ("IR version 7", "opset 13")),
        (8, 13, "1.11", ("IR version 8",)),
        (8, 17, "1.12", ("opset 17",)),
        (10, 17, "1.18", ("IR version 10",)),
        (10, 22, "1.21", ("opset 22",)),
        (14, 13, None, ("IR version 14",)),
    ],
)
def test_opset_and_ir_version(
    ir: int, opset: int, release: str | None, because: tuple[str, ...]
) -> None:
    found = oldest_runtime(oir.serde.deserialize_model(matmul(ir, opset)))
    assert found.text == release
    assert sorted(found.because) == sorted(because)


@pytest.mark.parametrize(
    ("op", "release"), [("QGemm", "1.9"), ("QLinearSoftmax", "1.14"), ("Unheard", None)]
)
def test_operators_of_microsoft(op: str, release: str | None) -> None:
    model = oir.serde.deserialize_model(
        onnx.parser.parse_model(
            f"""
            <ir_version: 7, opset_import: ["": 13, "com.microsoft": 1]>
            g (float[N] x) => (float[N] y) {{ y = com.microsoft.{op}(x) }}
            """
        )
    )
    found = oldest_runtime(model)
    assert found.text == release
    assert found.because == (f"com.microsoft.{op}",)


def test_versions_that_can_be_given() -> None:
    assert parse_release("1.17") == parse_release("1.17.3") == (1, 17)
    assert limits_of((1, 17)) == (20, 9)
    assert limits_of((1, 20)) == limits_of((1, 18)) == (21, 10)
    for text in ("new", "1", "v1.17", "1.5"):
        with pytest.raises(OptionError, match="--min-ort"):
            make_options(min_ort=text)


def compiled(model: onnx.ModelProto, out: Path, **options: object) -> qcompile.CompileResult:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(4, 16)).astype(np.float32)} for _ in range(8)]
    given = {"min_speedup": 0.01, "gate_time": "0.5s", "effort": "fast", "threads": 1} | options
    return qcompile.compile(model, calibration=feeds, output=out, **given)


def test_the_report_and_the_manifest_tell(tmp_path: Path) -> None:
    result = compiled(matmul(8, 13), tmp_path / "o")
    found = result.report.data["oldest_onnxruntime"]
    written = oldest_runtime(oir.load(result.model))
    assert found == {"version": written.text, "because": list(written.because)}
    assert f"opens with ONNX Runtime {written.text} or newer" in result.summary()


def test_an_older_runtime_keeps_the_opset_down(tmp_path: Path) -> None:
    result = compiled(matmul(10, 13), tmp_path / "o", min_ort="1.11")
    written = onnx.load(result.model)
    assert written.opset_import[0].version <= 16
    assert written.ir_version <= 8
    assert result.report.data["oldest_onnxruntime"]["version"] == "1.11"


def test_an_opset_that_cannot_be_lowered_is_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x, float[4] s) => (float[N,4] y) { y = LayerNormalization(x, s) }
        """
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    with pytest.raises(qcompile.QCompileError, match="LayerNormalization changed in between"):
        qcompile.compile(path, min_ort="1.10", output=tmp_path / "o")
    assert main([str(path), "--min-ort", "1.10", "-o", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists()


def test_an_operator_that_is_too_new_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.attempts.parse_release", lambda _: (1, 8))
    with pytest.raises(OptionError, match=r"the artifact needs ONNX Runtime 1\.\d+ \("):
        compiled(matmul(8, 13), tmp_path / "o", min_ort="1.17")


def test_weights_that_are_inputs_can_be_fixed(tmp_path: Path) -> None:
    proto = matmul(8, 13)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [16, 8]))
    kept = compiled(proto, tmp_path / "a")
    assert kept.exit_code == 3
    assert "no layer can be integer" in kept.headlines()[0]
    fixed = compiled(proto, tmp_path / "b", fix_weights=True).check()
    assert [i.name for i in onnx.load(fixed.model).graph.input] == ["x"]
    assert fixed.report.layers[0]["realised"] != "float"
