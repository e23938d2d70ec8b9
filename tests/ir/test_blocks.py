"""Packing and block grids: what is stored is what ONNX Runtime's kernels compute with."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.backends.ort_bits import has_bits
from qcompile.calibrators.nearest_blocks import SHRINKS, fit_blocks, grid_of, round_to
from qcompile.ir.blocks import BITS, BlockSpec, pack, split_blocks, unpack
from qcompile.ir.codebook import to_codebook
from qcompile.ir.errors import OptionError


@given(st.sampled_from((2, 4, 8)), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_unpack_is_the_inverse_of_pack(bits: int, count: int, seed: int) -> None:
    q = np.random.default_rng(seed).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    packed = pack(q, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    assert np.array_equal(unpack(packed, bits, count), q)


RUN = tuple(bits for bits in BITS if has_bits(bits))
"""What the installed ONNX Runtime computes with."""


def run(
    op_type: str, inputs: dict[str, np.ndarray], x: np.ndarray, **attributes: int
) -> np.ndarray:
    """One node of com.microsoft; ``x`` is its input "x", the others are initializers."""
    helper = onnx.helper
    node = helper.make_node(op_type, [*inputs], ["y"], domain="com.microsoft", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in inputs.items() if k != "x"],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(RUN),
    st.sampled_from((16, 32, 64)),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 100),
    st.integers(0, 2**32 - 1),
)
def test_matmulnbits_computes_with_the_values(
    bits: int, block: int, symmetric: bool, out: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((out, width)).astype(np.float32)
    weight = fit_blocks(matrix, BlockSpec(bits, block, symmetric))
    x = rng.standard_normal((2, width)).astype(np.float32)
    inputs = {"x": x, "b": weight.packed(), "s": weight.scale}
    zero = weight.packed_zero()
    if zero is not None:
        inputs["z"] = zero
    y = run(
        "MatMulNBits", inputs, x,
        K=width, N=out, bits=weight.spec.storage, block_size=block, accuracy_level=0,
    )  # fmt: skip
    np.testing.assert_allclose(y, x @ weight.values().T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", RUN)
@pytest.mark.parametrize("symmetric", [False, True])
def test_gather_reads_the_same_bytes_as_rows(bits: int, symmetric: bool) -> None:
    matrix = np.random.default_rng(bits).standard_normal((9, 64)).astype(np.float32)
    weight = fit_blocks(matrix, BlockSpec(bits, 32, symmetric))
    rows = np.array([[8, 0], [3, 3]], np.int64)
    inputs = {"b": weight.packed().reshape(9, -1), "x": rows, "s": weight.scale}
    zero = weight.packed_zero()
    if zero is not None:
        inputs["z"] = zero
    y = run(
        "GatherBlockQuantized", inputs, rows,
        gather_axis=0, quantize_axis=1, block_size=32, bits=weight.spec.storage,
    )  # fmt: skip
    np.testing.assert_array_equal(y, weight.values()[rows])


def test_matmulbnb4_reads_the_codebook() -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    weight = to_codebook(matrix, 32)
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    inputs = {"x": x, "b": weight.packed(), "s": weight.absmax.reshape(-1)}
    y = run("MatMulBnb4", inputs, x, K=64, N=6, block_size=32, quant_type=1)
    np.testing.assert_allclose(y, x @ weight.values().T, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(st.sampled_from(BITS), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_search_is_never_worse_than_the_full_range(
    bits: int, symmetric: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((3, 64)) ** 3).astype(np.float32)
    spec = BlockSpec(bits, 32, symmetric)
    blocks = split_blocks(matrix, 32).astype(np.float32)
    for power, peaked in ((2, False), (4, True)):
        error = []
        for shrinks in ((1.0,), SHRINKS):
            scale, zero = grid_of(blocks, spec, None, shrinks, peaked=peaked)
            values = (round_to(blocks, scale, zero, spec) - zero[..., None]) * scale[..., None]
            error.append(float((np.abs(values - blocks) ** power).sum()))
        assert error[1] <= error[0] * (1 + 1e-5)


@settings(deadline=None)
@given(st.sampled_from((3, 4, 8)), st.booleans(), st.integers(0, 2**32 - 1))
def test_without_data_no_block_gets_smaller_on_the_whole(
    bits: int, symmetric: bool, seed: int
) -> None:
    matrix = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)
    values = fit_blocks(matrix, BlockSpec(bits, 32, symmetric)).values()
    real, made = (split_blocks(m, 32).astype(np.float64) for m in (matrix, values))
    np.testing.assert_allclose((real * made).sum(-1), (real * real).sum(-1), rtol=1e-5)


def test_what_no_kernel_reads_is_refused() -> None:
    with pytest.raises(OptionError, match="5 bits cannot be stored; use 2, 3, 4, 8"):
        BlockSpec(5)
    with pytest.raises(OptionError, match="a block of 48 is no power of two"):
        BlockSpec(4, 48)


def test_constant_and_zero_blocks_are_exact() -> None:
    matrix = np.zeros((2, 32), np.float32)
    matrix[1] = 0.7
    for symmetric in (False, True):
        values = fit_blocks(matrix, BlockSpec(4, 16, symmetric)).values()
        np.testing.assert_allclose(values, matrix, atol=1e-7)
