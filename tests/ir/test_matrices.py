"""Which constants are matrices that may have few bits, and why others are not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.ir.matrices import find_matrices
from qcompile.ir.shapes import infer_shapes

HEAD = '<ir_version: 8, opset_import: ["" : 17]> m (int64[n, s] ids, float[n, s, 8] x) => (float[n, s, c] y)'


def found(body: str, arrays: dict[str, np.ndarray]) -> tuple[list[str], dict[str, str]]:
    proto = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    model = oir.from_proto(proto)
    infer_shapes(model)
    matrices, notes = find_matrices(model)
    return [m.name for m in matrices], {note.where: note.text for note in notes}


ANGLES = np.outer(np.arange(32), 0.5 ** np.arange(8))
WIDE = np.random.default_rng(0).standard_normal((32, 8))

TURNED = [
    "rows = Gather (table, ids) y = Mul (x, rows)",
    "rows = Gather (table, ids) moved = Identity (rows) y = Mul (moved, x)",
]


@pytest.mark.parametrize("body", TURNED)
def test_cosines_of_positions_are_no_embedding(body: str) -> None:
    names, notes = found(body, {"table": np.cos(ANGLES)})
    assert names == [] and "multiply activations" in notes["table"]


def test_halves_that_are_joined_first_are_seen_too() -> None:
    body = "rows = Gather (table, ids) both = Concat <axis = -1> (rows, rows) y = Mul (x, both)"
    names, notes = found(body, {"table": np.cos(ANGLES[:, :4])})
    assert names == [] and "multiply activations" in notes["table"]


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("rows = Gather (table, ids) y = Add (x, rows)", {}),
        ("rows = Gather (table, ids) y = Mul (rows, gain)", {"gain": np.ones(8)}),
        (
            "rows = Gather (table, ids) mask = ReduceMax <axes = [-1]> (x) y = Mul (rows, mask)",
            {},
        ),
    ],
)
def test_embeddings_are_matrices(body: str, more: dict[str, np.ndarray]) -> None:
    assert found(body, {"table": np.cos(ANGLES), **more})[0] == ["table"]


def test_embeddings_that_are_multiplied_by_each_other_are_matrices() -> None:
    body = "a = Gather (one, ids) b = Gather (two, ids) y = Mul (a, b)"
    assert found(body, {"one": 3 * WIDE, "two": 3 * WIDE[::-1]})[0] == ["one", "two"]
