"""Weight-only for TensorRT: INT4 in blocks behind a DequantizeLinear, judged here, finished on the device."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
import pytest

import qcompile
from qcompile.backends.legality import check_legality
from qcompile.backends.ort import AS_WRITTEN
from qcompile.backends.tables import get_target
from qcompile.backends.trt_weights import lower_to_dequantize
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import OptionError, TargetError
from qcompile.ir.matrices import find_matrices
from qcompile.options import make_options
from qcompile.weights_engine import engine_choices
from qcompile.weights_plan import choose_matrices

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, seq, 128] x) => (float[batch, seq, 64] y) {
  a = MatMul (x, up)
  r = Relu (a)
  b = MatMul (r, down)
  s = Add (x, b)
  c = MatMul (s, uneven)
  t = Relu (c)
  d = MatMul (t, back)
  u = Add (s, d)
  y = MatMul (u, head)
}
"""
SHAPES = {
    "up": (128, 256), "down": (256, 128), "uneven": (128, 65), "back": (65, 128), "head": (128, 64)
}  # fmt: skip


def compiled(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], output: Path, **more: object
) -> qcompile.CompileResult:
    return qcompile.compile(
        model,
        target="tensorrt-int4",
        calibration=feeds,
        output=output,
        threads=1,
        min_sqnr=10,
        **more,
    )


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype("f")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 16, 128)).astype("f")} for _ in range(12)]


@pytest.fixture(scope="module")
def result(
    model: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    tmp_path_factory: pytest.TempPathFactory,
) -> qcompile.CompileResult:
    return compiled(model, feeds, tmp_path_factory.mktemp("int4") / "a")


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """As written: ONNX Runtime's own rule would make a MatMulNBits with 8-bit activations of it."""
    options = ort.SessionOptions()
    for key, value in AS_WRITTEN.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(proto.SerializeToString(), options)


def _pairs(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Weight -> its DequantizeLinear."""
    nodes = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    return {n.input[0].rsplit("_int", 1)[0]: n for n in nodes}


def test_weights_are_int4_in_blocks_and_the_edge_has_8_bits(result: qcompile.CompileResult) -> None:
    made = onnx.load(result.model)
    onnx.checker.check_model(made, full_check=True)
    assert result.model.name == "model.qdq.onnx"
    assert made.opset_import[0].version == 21 and made.ir_version >= 10
    pairs, types = _pairs(made), {t.name: t for t in made.graph.initializer}
    assert set(pairs) == {"up", "down", "head"}
    for name in ("up", "down"):
        attributes = {a.name: a.i for a in pairs[name].attribute}
        stored, scale = (types[i] for i in pairs[name].input)
        assert attributes == {"axis": 0, "block_size": 64}
        assert stored.data_type == onnx.TensorProto.INT4
        assert tuple(stored.dims) == SHAPES[name]
        assert scale.data_type == onnx.TensorProto.FLOAT16
        assert tuple(scale.dims) == (SHAPES[name][0] // 64, SHAPES[name][1])
        assert (onnx.numpy_helper.to_array(scale) > 0).all()
    stored, scale = (types[i] for i in pairs["head"].input)
    assert stored.data_type == onnx.TensorProto.INT8 and tuple(scale.dims) == (64,)
    assert {a.name: a.i for a in pairs["head"].attribute} == {"axis": 1}
    assert not any(n.op_type == "QuantizeLinear" for n in made.graph.node)
    graph = oir.load(result.model)
    assert check_legality(graph, get_target("tensorrt-int4", "sm89")) == ()
    other = check_legality(graph, get_target("tensorrt-int8", "sm89"))
    assert {i.found.split(",")[0] for i in other} == {"only one operand is quantized"}


def test_what_does_not_fit_stays_float_and_says_why(result: qcompile.CompileResult) -> None:
    rows = {m["name"]: m for m in result.report.data["matrices"]}
    assert rows["uneven"]["note"].startswith("65 outputs are an odd number")
    assert rows["back"]["note"].startswith("no block up to 64 divides its 65 inputs")
    assert (rows["up"]["precision"], rows["head"]["precision"]) == ("int4-weights", "int8-weights")


def test_it_is_a_success_of_the_first_stage(result: qcompile.CompileResult) -> None:
    assert (result.verdict, result.exit_code) == ("not measured", 0)
    assert result.report.sqnr_db > 12
    names = {p.name for p in (result.path / "deploy").iterdir()}
    assert names >= {"device.py", "device_spec.json", "trtexec.txt", "float.onnx", "fp16.onnx"}
    assert "calibration.cache" not in names and "provider_options.json" not in names
    schema = Path(qcompile.__file__).parent / "report.schema.json"
    report = json.loads((result.path / "report.json").read_text())
    jsonschema.validate(report, json.loads(schema.read_text()))


def test_the_same_lock_gives_the_same_bytes(
    result: qcompile.CompileResult,
    model: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    again = compiled(model, feeds, tmp_path / "b", lock=result.path / "qcompile.lock")
    assert again.model.read_bytes() == result.model.read_bytes()


@pytest.mark.parametrize("algorithm", ["hqq", "awq"])
def test_every_algorithm_ends_in_positive_scales(
    algorithm: str, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    made = compiled(model, feeds, tmp_path / "a", algorithm=algorithm, rest="fp32").check()
    proto = onnx.load(made.model)
    scales = {n.input[1] for n in _pairs(proto).values()}
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert len(scales) == 3
    assert all((arrays[s] > 0).all() and arrays[s].dtype == np.float32 for s in scales)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_runtime_computes_what_the_integers_say(bits: int, turned: bool) -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((48, 128)).astype("f")
    matrix[:, :64] = 0  # blocks without a scale of their own
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[3, 128] x) => (float[3, 48] y) {{ y = Gemm <transB = {int(not turned)}> (x, w) }}"""
    proto = onnx.parser.parse_model(text)
    stored = np.ascontiguousarray(matrix.T) if turned else matrix
    proto.graph.initializer.append(onnx.numpy_helper.from_array(stored, "w"))
    model = oir.serde.deserialize_model(proto)
    weight = fit_blocks(matrix, BlockSpec(bits, 32 if bits == 4 else 128, True, True))
    assert (weight.scale > 0).all()
    lower_to_dequantize(model, find_matrices(model)[0], {"w": weight})
    again = oir.serde.serialize_model(model)
    onnx.checker.check_model(again, full_check=True)
    x = rng.standard_normal((3, 128)).astype("f")
    found = _session(again).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ weight.values().T, rtol=1e-4, atol=1e-4)
    assert not find_matrices(model)[0], "there is nothing left to lower"


def test_the_product_behind_heads_has_two_dimensions_and_the_same_result() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[b, 4, n, 16] x) => (float[b, n, 32] y) {
      t = Transpose <perm = [0, 2, 1, 3]> (x)
      r = Reshape (t, joined)
      y = MatMul (r, w)
    }"""
    proto = onnx.parser.parse_model(text)
    matrix = np.random.default_rng(5).standard_normal((64, 32)).astype("f")
    for name, array in (("w", matrix), ("joined", np.array([0, 0, 64]))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto = onnx.shape_inference.infer_shapes(proto)
    model = oir.serde.deserialize_model(proto)
    weight = fit_blocks(matrix.T, BlockSpec(4, 32, True, True))
    lower_to_dequantize(model, find_matrices(model)[0], {"w": weight})
    again = oir.serde.serialize_model(model)
    onnx.checker.check_model(again, full_check=True)
    ops = [n.op_type for n in again.graph.node]
    assert ops.count("Reshape") == 3
    x = np.random.default_rng(6).standard_normal((2, 4, 5, 16)).astype("f")
    found = _session(again).run(["y"], {"x": x})[0]
    real = x.transpose(0, 2, 1, 3).reshape(2, 5, 64) @ weight.values().T
    np.testing.assert_allclose(found, real, rtol=1e-4, atol=1e-4)


def test_a_turned_sign_is_put_right_with_the_loss_of_one_step() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[3, 64] x) => (float[3, 4] y) { y = Gemm <transB = 1> (x, w) }"""
    proto = onnx.parser.parse_model(text)
    matrix = np.random.default_rng(3).standard_normal((4, 64)).astype("f")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "w"))
    model = oir.serde.deserialize_model(proto)
    weight = fit_blocks(matrix, BlockSpec(4, 32, symmetric=True))
    assert (weight.scale < 0).any(), "without `positive` the largest element chooses the sign"
    lower_to_dequantize(model, find_matrices(model)[0], {"w": weight})
    found = _session(oir.serde.serialize_model(model)).run(None, {"x": np.eye(64, dtype="f")[:3]})[
        0
    ]
    step = np.abs(weight.scale).max()
    np.testing.assert_allclose(found, weight.values()[:, :3].T, atol=step * 1.001)


def test_what_is_looked_up_or_read_twice_stays_float() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[n] i) => (float[n, 128] y) {
          e = Gather (table, i)
          a = MatMul (e, twice)
          r = Relu (a)
          b = MatMul (r, twice)
          y = Relu (b)
        }"""
    )
    rng = np.random.default_rng(4)
    for name in ("table", "twice"):
        array = rng.standard_normal((128, 128)).astype("f")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    form = get_target("tensorrt-int4", "sm89").weights
    assert form is not None
    options = make_options(target="tensorrt-int4")
    matrices = find_matrices(oir.serde.deserialize_model(proto))[0]
    found = engine_choices(choose_matrices(matrices, form, options), form)
    reasons = {c.matrix.name: (c.precision, c.reason) for c in found}
    assert reasons["table"] == (
        "float", "rows of it are looked up, and a lookup reads no integers",
    )  # fmt: skip
    assert reasons["twice"][0] == "float" and reasons["twice"][1].startswith("2 layers read it")
    with pytest.raises(OptionError, match="4 or 8 bits, not in 2"):
        few = make_options(target="tensorrt-int4", bits=2)
        only = [m for m in matrices if m.name == "twice"]
        engine_choices(choose_matrices(only, form, few), form)


def test_refusals(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match="cannot compile INT4 for sm75: it needs SM80"):
        get_target("tensorrt-int4", "sm75")
    with pytest.raises(TargetError, match="--opset 17: tensorrt-int4 needs at least 21"):
        qcompile.compile(
            model, target="tensorrt-int4", calibration=feeds, opset=17, output=tmp_path / "a"
        )
