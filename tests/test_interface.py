"""What callers rely on: names, types, free axes, batches."""

from __future__ import annotations

import numpy as np

from qcompile.backends.ort import Port
from qcompile.interface import at_batch, interface_faults, is_repeated, shape_extremes


def test_changed_inputs_are_found() -> None:
    want = [Port("x", "tensor(float)", ("n", None, 4))]
    assert interface_faults("input", want, [Port("x", "tensor(float)", ("b", 7, 4))]) == [
        ("x", "input 'x': axis 1 is fixed at 7, free")
    ]
    assert interface_faults("input", want, [*want, Port("m", "tensor(bool)", ())])[0][0] == "m"
    assert interface_faults("input", want, want) == []


def test_batch_axis_is_found_by_its_name() -> None:
    inputs = [
        Port("x", "tensor(float)", ("b", 4)),
        Port("h", "tensor(float)", (2, "b", 8)),
        Port("rate", "tensor(int64)", ()),
    ]
    feed = {"x": np.ones((1, 4)), "h": np.ones((2, 1, 8)), "rate": np.array(16000)}
    found = at_batch(feed, inputs, 3)
    assert found is not None
    assert [np.shape(v) for v in found.values()] == [(3, 4), (2, 3, 8), ()]
    assert at_batch({"x": np.ones((1, 4))}, [Port("x", "tensor(float)", (1, "t"))], 3) is None


def test_repetition() -> None:
    one = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    assert is_repeated(one, np.repeat(one, 3, 0))
    assert not is_repeated(one, np.cumsum(np.repeat(one, 3, 0), 0))
    assert not is_repeated(one, one.T)


def test_extremes_by_size() -> None:
    feeds = [{"x": np.ones(n)} for n in (3, 1, 9, 4)]
    assert [f["x"].size for f in shape_extremes(feeds)] == [3, 1, 9]
    assert len(shape_extremes(feeds[:1] * 4)) == 1
