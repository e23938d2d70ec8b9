"""store-tables: an embedding's rows in 8 bits, each with a scale of its own."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.ir.plan import FLOAT, TABLE, LayerChoice, PrecisionPlan
from qcompile.passes.store_tables import StoreTables
from tests.passes.qdq_models import Array, run, state_of, text_model

RNG = np.random.default_rng(0)
TABLE_OF_WORDS = (RNG.standard_normal((40, 8)) * 10.0 ** RNG.uniform(-3, 3, (40, 1))).astype("f")
LOOKUP = "g (int64[N, 3] ids) => (float[N, 3, 8] y) { r = Gather (t, ids)  y = Relu (r) }"
IDS = {"ids": np.array([[0, 39, -1], [7, 7, -40]])}


def stored(
    text: str, names: list[str], precision: str = TABLE, **arrays: Array
) -> tuple[onnx.ModelProto, onnx.ModelProto, int]:
    """The model before and after, and how many tables were stored."""
    before = text_model(text, **arrays)
    state = state_of(before, calibrate=False)
    state.plan = PrecisionPlan(tuple(LayerChoice(n, "Gather", precision, "") for n in names))
    result = StoreTables().run(state)
    again = StoreTables().run(state)
    assert not again.changed
    after = oir.to_proto(state.model)
    onnx.checker.check_model(after, full_check=True)
    return before, after, result.changed


def test_rows_are_looked_up_in_8_bits_and_multiplied_by_their_scales() -> None:
    before, after, count = stored(LOOKUP, ["n_r"], t=TABLE_OF_WORDS)
    assert count == 1
    assert [n.op_type for n in after.graph.node] == ["Gather", "Gather", "Cast", "Mul", "Relu"]
    held = {i.name: onnx.numpy_helper.to_array(i) for i in after.graph.initializer}
    assert {n: (a.dtype, a.shape) for n, a in held.items()} == {
        "t_quantized": (np.dtype(np.int8), (40, 8)),
        "t_scale": (np.dtype(np.float32), (40, 1)),
    }
    exact, found = run(before, IDS)[0], run(after, IDS)[0]
    step = np.abs(TABLE_OF_WORDS[IDS["ids"]]).max(-1, keepdims=True) / 127
    assert np.all(np.abs(found - exact) <= step * 0.501)


def test_every_node_of_it_stands_for_the_lookup() -> None:
    _, after, _ = stored(LOOKUP, ["n_r"], t=TABLE_OF_WORDS)
    told = [{p.value for p in n.metadata_props} for n in after.graph.node]
    assert told == [{"n_r"}] * 4 + [{"n_y"}]


def test_a_shared_table_is_stored_once_and_an_output_keeps_its_name() -> None:
    text = """g (int64[3] ids, int64[2] more) => (float[3, 8] y, float[2, 8] z) {
        y = Gather (t, ids)  z = Gather (t, more) }"""
    before, after, count = stored(text, ["n_y", "n_z"], t=TABLE_OF_WORDS)
    assert count == 2
    assert len(after.graph.initializer) == 2
    feed = {"ids": np.array([1, 2, 3]), "more": np.array([4, 5])}
    for exact, found in zip(run(before, feed), run(after, feed), strict=True):
        np.testing.assert_allclose(found, exact, atol=np.abs(exact).max() / 200)


def test_higher_ranks_have_a_scale_for_each_entry() -> None:
    text = "g (int64[N] ids) => (float[N, 2, 4] y) { y = Gather (t, ids) }"
    before, after, _ = stored(text, ["n_y"], t=TABLE_OF_WORDS.reshape(40, 2, 4))
    feed = {"ids": np.array([3, 9])}
    exact, found = run(before, feed)[0], run(after, feed)[0]
    peaks = np.abs(exact).max((1, 2), keepdims=True)
    assert np.all(np.abs(found - exact) <= peaks / 127 * 0.501)


@pytest.mark.parametrize(
    ("text", "names", "precision"),
    [
        (LOOKUP, ["n_r"], FLOAT),
        (LOOKUP, ["n_y"], TABLE),
        ("g (int64[3] ids) => (float[40, 3] y) { y = Gather <axis = 1> (t, ids) }", ["n_y"], TABLE),
        ("g (float[4, 8] x) => (float[2, 8] y) { y = Gather (x, i) }", ["n_y"], TABLE),
    ],
)
def test_left_alone(text: str, names: list[str], precision: str) -> None:
    _, after, count = stored(text, names, precision, t=TABLE_OF_WORDS, i=np.array([0, 1]))
    assert count == 0
    assert not any(n.op_type == "Cast" for n in after.graph.node)


def test_a_table_that_is_also_read_otherwise_stays_beside_its_integers() -> None:
    text = """g (int64[3] ids, float[2, 40] x) => (float[3, 8] y, float[2, 8] z) {
        y = Gather (t, ids)  z = MatMul (x, t) }"""
    _, after, count = stored(text, ["n_y"], t=TABLE_OF_WORDS)
    assert count == 1
    assert {i.name for i in after.graph.initializer} == {"t", "t_quantized", "t_scale"}


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e30))
def test_no_entry_errs_by_more_than_half_a_step_of_its_row(seed: int, size: float) -> None:
    table = (np.random.default_rng(seed).standard_normal((5, 6)) * size).astype(np.float32)
    table[2] = 0
    text = "g (int64[5] ids) => (float[5, 6] y) { y = Gather (t, ids) }"
    _, after, _ = stored(text, ["n_y"], t=table)
    found = run(after, {"ids": np.arange(5)})[0]
    step = np.abs(table).max(1, keepdims=True) / 127
    assert np.all(np.abs(found - table) <= step * 0.501)
