"""Weight-only targets: a tiny language model with a tied embedding goes through the whole flow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

import qcompile
from qcompile.backends.ort_bits import has_bits
from qcompile.backends.tables import get_target
from qcompile.data.inputs import InputSpec
from qcompile.data.text import TextRecipe, open_text, token_feed
from qcompile.ir.errors import BackendMissingError, CalibrationError, OptionError
from qcompile.ir.matrices import find_matrices
from qcompile.language import perplexity
from qcompile.options import make_options
from qcompile.round_weights import Rounded, round_alone, round_raised
from qcompile.weights_flow import lower
from qcompile.weights_plan import choose_matrices, raise_bits, raised_share

VOCABULARY, WIDTH = 1024, 64

MODEL = f"""
<ir_version: 8, opset_import: ["" : 17]>
lm (int64[batch, seq] input_ids) => (float[batch, seq, {VOCABULARY}] logits) {{
  x = Gather (embedding, input_ids)
  h = MatMul (x, up)
  b = Add (h, bias)
  r = Relu (b)
  d = MatMul (r, down)
  s = Add (x, d)
  turned = Transpose <perm = [1, 0]> (embedding)
  logits = MatMul (s, turned)
}}
"""


@pytest.fixture
def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    arrays = {
        "embedding": rng.standard_normal((VOCABULARY, WIDTH)),
        "up": rng.standard_normal((WIDTH, 256)) / 8,
        "bias": rng.standard_normal(256) / 8,
        "down": rng.standard_normal((256, WIDTH)) / 16,
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return proto


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"input_ids": rng.integers(0, VOCABULARY, (1, 24))} for _ in range(12)]


def compiled(
    model: onnx.ModelProto | Path, feeds: object, path: Path, **options: object
) -> qcompile.CompileResult:
    defaults = {"target": "ort-int4", "min_speedup": 1e-6, "gate_time": "0.2s", "threads": 1}
    return qcompile.compile(
        model, calibration=feeds, output=path / "out", **{**defaults, **options}
    )


@pytest.mark.parametrize("target", ["ort-int4", "ort-int8-weights", "ort-nf4"])
def test_every_matrix_is_lowered_and_the_tied_one_is_stored_once(
    target: str, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    result = compiled(model, feeds, tmp_path, target=target, algorithm="rtn").check()
    made = onnx.load(result.model)
    ops = [n.op_type for n in made.graph.node]
    product = "MatMulBnb4" if target == "ort-nf4" else "MatMulNBits"
    assert ops.count(product) + ops.count("MatMulNBits") * (product != "MatMulNBits") == 3
    assert ops.count("GatherBlockQuantized") == 1
    assert "MatMul" not in ops
    large = [t for t in made.graph.initializer if np.prod(t.dims) > VOCABULARY * WIDTH // 4]
    assert len([t for t in large if t.name.startswith("embedding")]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(row["requested"] == row["realised"] for row in report["layers"])
    assert report["integer_mac_share"] == 1.0
    assert {w["name"] for w in report["matrices"]} == {"embedding", "up", "down"}
    apart = {w: row["sqnr_db"] for row in report["graph"]["nodes"] for w in row["writes"]}
    assert {"x", "b", "s", "logits"} <= apart.keys()
    assert all(apart[name] > 10 for name in ("x", "b", "s", "logits"))
    assert apart["s"] < apart["x"]  # what is lost adds up along the depth
    assert product in {row["op_type"] for row in report["operators"]["after"]}
    assert "MatMul" in {row["op_type"] for row in report["operators"]["before"]}


def test_the_bias_joins_the_kernel(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    made = onnx.load(compiled(model, feeds, tmp_path, algorithm="rtn").check().model)
    adds = [n for n in made.graph.node if n.op_type == "Add"]
    assert len(adds) == 1  # the residual
    first = next(n for n in made.graph.node if n.op_type == "MatMulNBits")
    assert first.input[5].startswith("bias")


def test_a_product_has_a_type_where_what_is_before_it_has_none(model: onnx.ModelProto) -> None:
    found = oir.from_proto(model)
    (product,) = (n for n in found.graph if n.outputs[0].name == "d")
    product.outputs[0].type, product.outputs[0].shape = None, oir.Shape([None, None, WIDTH])
    form = get_target("ort-int4").weights
    assert form is not None
    matrices, _ = find_matrices(found)
    chosen = choose_matrices(matrices, form, make_options(target="ort-int4"))
    rounded = {c.matrix.name: round_alone(c, "rtn") for c in chosen}
    lowered = lower(found, rounded, form)
    (value,) = (v for n in lowered.graph for v in n.outputs if v.name == "d")
    assert value.dtype == oir.DataType.FLOAT


def test_a_layer_kept_float_stays_float(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    first = next(n for n in model.graph.node if n.op_type == "MatMul")
    first.name = "up_projection"
    result = compiled(model, feeds, tmp_path, keep_float=("up_projection",), algorithm="rtn")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    row = next(r for r in report["layers"] if r["origin"] == "up_projection")
    assert (row["requested"], row["reason"]) == ("float", "kept float by the user")
    assert result.exit_code == 0


def test_in_a_hurry_only_the_verdict_is_found_out(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    result = compiled(model, feeds, tmp_path, algorithm="rtn", effort="fast").check()
    report = result.report.data
    assert report["gate"]["sqnr_db"] > 10
    assert report["operators"] is None
    assert report["samples"] == []
    assert report["language"] is None
    assert any("--effort fast" in text for text in report["left_out"])


def test_two_bits_are_refused_by_the_gate(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    if not has_bits(2):
        with pytest.raises(BackendMissingError, match="no MatMulNBits for weights of 2 bits"):
            compiled(model, feeds, tmp_path, target="ort-int2", algorithm="rtn")
        return
    result = compiled(model, feeds, tmp_path, target="ort-int2", algorithm="rtn", min_sqnr=30.0)
    assert result.exit_code == 3
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert (tmp_path / "out" / "rejected" / "model.onnx").is_file()


def test_a_block_without_a_fast_kernel_is_refused(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--block 16: no fast kernel for this target; use 32, 64"):
        compiled(model, feeds, tmp_path, target="ort-int2", block=16)


def test_copies_of_the_embedding_are_one_matrix_and_odd_readers_keep_one_float(
    model: onnx.ModelProto,
) -> None:
    turn = next(n for n in model.graph.node if n.op_type == "Transpose")
    model.graph.node.remove(turn)
    table = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(table.T.copy(), "turned"))
    found, notes = find_matrices(oir.from_proto(model))
    assert [m.name for m in found] == ["embedding", "up", "down"]
    assert [u.op_type for u in found[0].uses] == ["Gather", "MatMul"]
    assert not notes
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["up"], ["negative"]))
    found, notes = find_matrices(oir.from_proto(model))
    assert [m.name for m in found] == ["embedding", "down"]
    assert "a node reads it that is no MatMul" in notes[0].text


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    feed = {"input_ids": np.array([[1, 5, 7, 2]])}
    found = perplexity(
        lambda f: {"logits": np.zeros((1, 4, 50), np.float32)}, [feed], "input_ids", "logits"
    )
    assert found == pytest.approx(50.0)


def test_text_feeds_fill_masks_positions_and_an_empty_cache() -> None:
    specs = (
        InputSpec("input_ids", "int64", ("b", "s")),
        InputSpec("attention_mask", "int64", ("b", "t")),
        InputSpec("position_ids", "int64", ("b", "s")),
        InputSpec("past_key_values.0.key", "float32", ("b", 3, "p", 8)),
    )
    feed = token_feed(specs, np.array([4, 5]))
    assert feed["attention_mask"].tolist() == [[1, 1]]
    assert feed["past_key_values.0.key"].shape == (1, 3, 0, 8)
    later = token_feed(specs, np.array([6]), {specs[3].name: np.ones((1, 3, 2, 8), np.float32)})
    assert later["attention_mask"].tolist() == [[1, 1, 1]]
    assert later["position_ids"].tolist() == [[2]]
    with pytest.raises(CalibrationError, match="input 'pixels: float32"):
        token_feed((specs[0], InputSpec("pixels", "float32", (1, 3))), np.array([1]))


def test_a_decoder_generates_with_its_encoders_output() -> None:
    specs = (
        InputSpec("input_ids", "int64", ("b", "s")),
        InputSpec("hidden", "float32", ("b", 5, 4)),
    )
    hidden = np.ones((1, 5, 4), np.float32)
    feed = token_feed(specs, np.array([1, 2]), others={"hidden": hidden})
    assert feed["hidden"] is hidden


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("words")
    specs = (InputSpec("input_ids", "int64", ("b", "s")),)
    with pytest.raises(OptionError, match=r"--tokenizer tokenizer\.json"):
        open_text(path, specs, None, "--calibration")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises((CalibrationError, BackendMissingError), match="tokenizer"):
        open_text(path, specs, TextRecipe(tmp_path / "tokenizer.json"), "--calibration")


def test_what_is_not_accurate_enough_gets_8_bits_where_it_disturbs_most(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    result = compiled(model, feeds, tmp_path, min_sqnr=90.0)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert result.exit_code == 3
    names = [row["name"] for row in report["plan"]["candidates"]]
    assert names == ["descent", "descent, 50% of the weights in 8 bits"]
    assert [row["chosen"] for row in report["plan"]["candidates"]][-1]
    assert all(row["refused"] for row in report["plan"]["candidates"])


def test_bits_rise_where_the_output_is_disturbed_most_for_the_size(model: onnx.ModelProto) -> None:
    matrices = find_matrices(oir.from_proto(model))[0]
    form = get_target("ort-int4").weights
    assert form is not None
    choices = choose_matrices(matrices, form, make_options())
    assert [c.precision for c in choices] == ["int8-weights", "int4-weights", "int4-weights"]
    apart = {"up": 0.1, "down": 0.3}
    raised = raise_bits(choices, apart, 0.5)
    assert [c.precision for c in raised] == ["int8-weights", "int4-weights", "int8-weights"]
    assert raised[2].reason == "75.0% of what few bits do to the output"
    assert raise_bits(choices, apart, 1.0) == choices
    # half of the elements at most
    assert raise_bits(choices, apart, 0.0) == raised
    assert raised_share(choices, raised) == 0.5


def test_a_lock_replays_matrices_that_got_8_bits(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path = tmp_path / "lm.onnx"
    onnx.save(model, path)
    first = compiled(path, feeds, tmp_path, min_sqnr=90.0)
    lock = tmp_path / "kept.lock"
    lock.write_bytes((tmp_path / "out" / "qcompile.lock").read_bytes())
    again = compiled(path, feeds, tmp_path / "2", min_sqnr=90.0, locked=True, lock=lock)
    assert again.report.data["hashes"] == first.report.data["hashes"]
    assert "int8-weights" in {row["precision"] for row in again.report.data["matrices"][1:]}


def test_columns_that_awq_scaled_stay_scaled_in_8_bits(
    model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]
) -> None:
    matrix = find_matrices(oir.from_proto(model))[0][1]
    form = get_target("ort-int8-weights").weights
    assert form is not None
    choice = choose_matrices([matrix], form, make_options())[0]
    few = Rounded(round_alone(choice).weight, 0.0, "awq", columns=(2.0,) * 64)
    made = round_raised(choice, few)
    assert made.columns == few.columns
    assert made.values() == pytest.approx(matrix.array(), abs=0.01)


def test_a_model_without_a_matrix_is_not_delivered(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }'
    )
    feeds = [{"x": np.ones((1, 8), np.float32)} for _ in range(4)]
    result = qcompile.compile(
        proto, target="ort-int4", calibration=feeds, output=tmp_path / "out", gate_time="1s"
    )
    assert result.exit_code == 3
    assert "it has no Conv, MatMul, Gemm or LSTM (1 Relu)" in result.report.data["headline"]


def test_where_all_stays_float_nothing_is_run(
    model: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompile.weights_gate.judge", None)  # calling it would fail
    result = compiled(model, feeds, tmp_path, keep_float=("*",))
    assert result.exit_code == 3
    assert "no layer can be integer" in result.report.data["headline"]
    assert "kept float by the user" in result.report.data["headline"]


def dequantized(out: int, width: int, block: int, seed: int) -> np.ndarray:
    """Integers of 4 bits with float16 scales, as a model exported from such a checkpoint has them."""
    rng = np.random.default_rng(seed)
    q = np.clip(np.rint(rng.normal(8, 2, (out, width // block, block))), 0, 15)
    z = rng.integers(5, 11, q.shape[:2])[..., None]
    scale = rng.uniform(0.01, 0.04, z.shape).astype(np.float16)
    return np.asarray(((q - z) * scale).reshape(out, width), np.float32)


@pytest.mark.parametrize(
    ("algorithm", "block", "kept"),
    [("auto", None, 32), ("awq", None, 32), ("rtn", 16, 16), ("gptq", 64, None)],
)
def test_a_checkpoint_s_grid_is_kept_where_its_blocks_allow_it(
    algorithm: str,
    block: int | None,
    kept: int | None,
    model: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    arrays = {"up": dequantized(256, WIDTH, 32, 0), "down": dequantized(WIDTH, 256, 32, 1)}
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            turned = np.ascontiguousarray(arrays[tensor.name].T)
            tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    result = compiled(model, feeds, tmp_path, algorithm=algorithm, block=block, min_sqnr=5)
    rows = {row["name"]: row for row in result.report.data["matrices"]}
    for name in arrays:
        assert (rows[name]["algorithm"] == "kept") == (kept is not None)
        assert kept is None or (rows[name]["block"] == kept and rows[name]["sqnr_db"] > 120)
