"""Engines built ahead of time, without a GPU, by TensorRT for RTX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.tables_trt import tensorrt_int8
from qcompile.backends.trt import build_engine
from qcompile.backends.trt_layers import realised_precision
from qcompile.backends.trt_library import Library, find_library
from qcompile.backends.trt_weights import lower_to_dequantize
from qcompile.calibrators.nearest_blocks import fit_blocks
from qcompile.ir.blocks import BlockSpec
from qcompile.ir.errors import TargetError
from qcompile.ir.matrices import find_matrices
from qcompile.passes.split_first import SplitFirst
from qcompile.planner.default import default_plan
from tests.passes.qdq_models import insert, state_of, text_model

LIBRARY = find_library(ahead_of_time=True)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="tensorrt-rtx is not installed")
RNG = np.random.default_rng(1)


def _library() -> Library:
    assert LIBRARY is not None
    return LIBRARY


def _saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def _weight(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) * 0.2).astype(np.float32)


@pytest.mark.parametrize("capability", ["SM80", "SM89", "SM120"])
def test_what_the_table_calls_int8_is_realised_so(tmp_path: Path, capability: str) -> None:
    proto = text_model(
        """g (float[1, 16, 16, 16] x) => (float[1, 16, 32] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            r = Relu (a)
            b = Conv <pads = [1, 1, 1, 1]> (r, w2, bias)
            s = Add (b, r)
            f = Reshape (s, shape)
            y = MatMul (f, m)
        }""",
        w1=_weight(16, 16, 3, 3),
        w2=_weight(16, 16, 3, 3),
        bias=_weight(16),
        m=_weight(256, 32),
        shape=np.asarray([1, 16, 256], np.int64),
    )
    state = state_of(proto, tensorrt_int8("sm80"))
    state.plan = default_plan(state)
    path = _saved(insert(state), tmp_path)
    built = build_engine(path, _library(), {}, capability)
    found = {n: realised_precision(built.layers, n) for n in ("n_a", "n_b", "n_y")}
    assert found == {"n_a": "int8", "n_b": "int8", "n_y": "int8"}
    assert built.engine
    assert built.capability == capability


def test_pools_and_a_concat_between_layers_move_8_bits(tmp_path: Path) -> None:
    proto = text_model(
        """g (float[1, 16, 16, 16] x) => (float[1, 16, 16, 16] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1)
            s = Sigmoid (a)
            m = Mul (a, s)
            p = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (m)
            q = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (p)
            c = Concat <axis = 1> (m, p, q)
            y = Conv <pads = [1, 1, 1, 1]> (c, w2)
        }""",
        w1=_weight(16, 16, 3, 3),
        w2=_weight(16, 48, 3, 3),
    )
    state = state_of(proto, tensorrt_int8("sm80"))
    state.plan = default_plan(state)
    built = build_engine(_saved(insert(state), tmp_path), _library(), {}, "SM89")
    pools = [layer for layer in built.layers if layer.kind == "maxpool"]
    assert len(pools) == 2
    assert all(set(p.inputs) == {"Int8"} for p in pools)


def test_q_k_and_v_of_one_product_are_one_kernel_and_one_more_quantizes(tmp_path: Path) -> None:
    proto = text_model(
        """g (float[n, 32, 64] x) => (float[n, 32, 64] y) {
            a = MatMul (x, w1)
            b = Add (a, bias)
            r = Reshape (b, five)
            t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
            q1, k1, v1 = Split <axis = 0> (t, ones)
            q = Squeeze (q1, zero)
            k = Squeeze (k1, zero)
            v = Squeeze (v1, zero)
            kt = Transpose <perm = [0, 1, 3, 2]> (k)
            s = MatMul (q, kt)
            p = Softmax (s)
            o = MatMul (p, v)
            ot = Transpose <perm = [0, 2, 1, 3]> (o)
            f = Reshape (ot, three)
            y = MatMul (f, w2)
        }""",
        w1=_weight(64, 192),
        bias=_weight(192),
        w2=_weight(64, 64),
        five=np.asarray([0, 32, 3, 4, 16], np.int64),
        three=np.asarray([0, 32, 64], np.int64),
        ones=np.asarray([1, 1, 1], np.int64),
        zero=np.asarray([0], np.int64),
    )
    state = state_of(proto, tensorrt_int8("sm80"))
    shapes = {"x": ((1, 32, 64), (1, 32, 64), (1, 32, 64))}

    def built() -> tuple[int, int]:
        state.plan = default_plan(state)
        made = build_engine(_saved(insert(state), tmp_path), _library(), shapes, "SM89")
        mha = sum("mha" in layer.name for layer in made.layers)
        return len([x for x in made.layers if x.kind not in ("signal", "wait")]), mha

    before, fused = built()
    assert fused == 1
    SplitFirst().run(state)
    after, fused = built()
    assert fused == 1
    assert after < before


def test_a_dynamic_input_needs_a_profile_and_takes_one(tmp_path: Path) -> None:
    path = _saved(
        text_model(
            "g (float[n, 16] x) => (float[n, 16] y) { y = MatMul (x, w) }", w=_weight(16, 16)
        ),
        tmp_path,
    )
    with pytest.raises(
        TargetError, match=r"input 'x' has the dynamic shape \(-1, 16\) and no profile"
    ):
        build_engine(path, _library(), {}, "SM89")
    shapes = {"x": ((1, 16), (4, 16), (8, 16))}
    assert build_engine(path, _library(), shapes, "SM89").layers


def test_what_the_parser_refuses_names_the_node(tmp_path: Path) -> None:
    proto = text_model(
        """g (float[4] x) => (float[4] y) {
            q = QuantizeLinear (x, s, z)
            y = DequantizeLinear (q, s, z)
        }""",
        s=np.asarray(0.1, np.float32),
        z=np.asarray(3, np.int8),
    )
    with pytest.raises(TargetError, match="cannot parse: node 'n_q'"):
        build_engine(_saved(proto, tmp_path), _library(), {}, "SM89")


@pytest.mark.parametrize("capability", ["SM80", "SM120"])
def test_int4_in_blocks_and_int8_per_output_join_the_kernel_of_their_product(
    tmp_path: Path, capability: str
) -> None:
    proto = text_model(
        """g (float[32, 256] x) => (float[32, 128] z) {
            a = MatMul (x, four)
            r = Relu (a)
            z = Gemm <transB = 1> (r, eight)
        }""",
        four=_weight(256, 256),
        eight=_weight(128, 256),
    )
    proto.opset_import[0].version, proto.ir_version = 21, 10
    for node, name in zip(proto.graph.node, ("a", "r", "z"), strict=True):
        node.name = name
    model = oir.serde.deserialize_model(proto)
    matrices = {m.name: m for m in find_matrices(model)[0]}
    grids = {"four": BlockSpec(4, 64, True, True), "eight": BlockSpec(8, 256, True, True)}
    weights = {n: fit_blocks(matrices[n].array(), spec) for n, spec in grids.items()}
    lower_to_dequantize(model, list(matrices.values()), weights)
    path = _saved(oir.serde.serialize_model(model), tmp_path)
    built = build_engine(path, _library(), {}, capability)
    assert realised_precision(built.layers, "a") == "int4-weights"
    assert realised_precision(built.layers, "z") == "int8-weights"
