"""Columns under a weight are what the operator multiplies; their moments are those of all data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.calibrators.gram import GramStore, Window, block_count, columns, split_blocks

RNG = np.random.default_rng(5)


def conv(x: npt.NDArray[np.float32], w: npt.NDArray[np.float32], window: Window) -> np.ndarray:
    """What ONNX Runtime makes of it, (groups, out, positions)."""
    node = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        strides=window.strides,
        pads=window.pads,
        dilations=window.dilations,
        group=window.group,
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, x.shape), value("w", 1, w.shape)], [value("y", 1, None)]
    )
    model = onnx.helper.make_model(
        graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x, "w": w})[0]
    flat = y.reshape(y.shape[0], window.group, w.shape[0] // window.group, -1)
    return flat.transpose(1, 2, 0, 3).reshape(window.group, w.shape[0] // window.group, -1)


WINDOWS = [
    ((2, 4, 7, 6), Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))),
    ((1, 4, 9, 8), Window((3, 2), (2, 3), (0, 1, 2, 0), (2, 1))),
    ((1, 6, 5, 5), Window((1, 1), (2, 2), (0, 0, 0, 0), (1, 1))),
    ((2, 6, 8, 8), Window((3, 3), (1, 2), (1, 1, 1, 1), (1, 1), group=6)),
    ((1, 6, 8, 8), Window((5, 1), (1, 1), (2, 0, 2, 0), (1, 1), group=2)),
    ((3, 4, 20), Window((5,), (2,), (2, 1), (2,))),
    ((1, 2, 4, 5, 6), Window((2, 3, 2), (1, 2, 1), (0, 1, 1, 1, 0, 0), (1, 1, 2))),
]


@pytest.mark.parametrize(("shape", "window"), WINDOWS)
def test_weights_times_columns_are_the_conv(shape: tuple[int, ...], window: Window) -> None:
    x = RNG.standard_normal(shape).astype(np.float32)
    w = RNG.standard_normal((12, shape[1] // window.group, *window.kernel)).astype(np.float32)
    found = columns(x, window, 10**6, np.random.default_rng(0))
    rows = w.reshape(window.group, 12 // window.group, -1)
    np.testing.assert_allclose(np.matmul(rows, found), conv(x, w, window), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", [1, 7, 50])
def test_a_sample_of_positions_is_among_all_of_them(positions: int) -> None:
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    everything = {c.tobytes() for c in columns(x, window, 10**6, RNG)[0].T}
    assert len(everything) == 2 * 8 * 8
    some = [c.tobytes() for c in columns(x, window, positions, np.random.default_rng(1))[0].T]
    assert len(some) == len(set(some)) == positions
    assert set(some) <= everything


def test_the_rows_of_a_product_are_columns() -> None:
    x = RNG.standard_normal((2, 3, 5)).astype(np.float32)
    found = columns(x, None, 100, RNG)
    np.testing.assert_array_equal(found[0].T, x.reshape(6, 5))


def test_an_input_without_positions_gives_none() -> None:
    window = Window((3, 3), (1, 1), (0, 0, 0, 0), (1, 1))
    assert columns(np.zeros((1, 2, 2, 2), np.float32), window, 9, RNG).shape == (1, 18, 0)


@given(
    mean=st.floats(-1000, 1000),
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_streamed_moments_are_those_of_the_whole(mean: float, parts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = (rng.standard_normal((2, 4, sum(parts))) + mean).astype(np.float32)
    store, at = GramStore(), 0
    for size in parts:
        store.update(whole[:, :, at : at + size])
        at += size
    np.testing.assert_allclose(store.mean(), whole.mean(axis=2, dtype=np.float64), atol=1e-3)
    expected = [np.cov(group.astype(np.float64), bias=True).reshape(4, 4) for group in whole]
    np.testing.assert_allclose(store.covariance(), expected, atol=2e-3)


def test_the_mean_alone_can_be_asked_for() -> None:
    store = GramStore(second=False)
    store.update(np.ones((1, 3, 5), np.float32))
    np.testing.assert_array_equal(store.mean(), np.ones((1, 3)))
    with pytest.raises(ValueError, match="mean alone"):
        store.covariance()
    with pytest.raises(ValueError, match="no columns"):
        GramStore().mean()


def test_blocks_are_runs_of_whole_channels() -> None:
    assert block_count(512, 9, 1536) == 4  # 170 channels each
    assert block_count(8, 9, 1536) == 1
    assert block_count(3, 2000, 1536) == 3
    values = np.arange(5 * 2 * 3, dtype=np.float32).reshape(1, 10, 3)
    cut = split_blocks(values, 5, 2)
    assert cut.shape == (2, 6, 3)
    np.testing.assert_array_equal(cut.reshape(12, 3)[:10], values[0])
    assert not cut.reshape(12, 3)[10:].any()
