"""Division in front of products where no factor can be folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as oir
import pytest

from qcompile.backends.tables import get_target
from qcompile.ir.errors import PassError
from qcompile.ir.manager import CompileState, PassManager
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.scale_branches import division_name, find_all
from tests.passes.qdq_models import run, text_model

# a normalization read by two products and by a residual sum, as in BERT
BERT = """g (float[1,5,8] x) => (float[1,5,8] y) {
  n = LayerNormalization (x, gain, shift)
  q = MatMul (n, w1)  k = MatMul (n, w2)  a = Add (q, k)  y = Add (n, a) }"""


def model() -> Any:
    rng = np.random.default_rng(0)
    arrays = {"gain": np.exp2(rng.integers(-3, 4, 8)), "shift": rng.standard_normal(8)}
    arrays |= {n: rng.standard_normal((8, 8)) for n in ("w1", "w2")}
    return text_model(BERT, **{k: v.astype(np.float32) for k, v in arrays.items()})


def scaled(exponents: dict[str, tuple[int, ...]]) -> oir.Model:
    state = CompileState(oir.from_proto(model()), get_target("ort-int8"))
    PassManager((FoldScales(exponents),)).run(state)
    return state.model


def test_products_read_the_divided_tensor_and_the_sum_does_not() -> None:
    regions, refused = find_all(oir.from_proto(model()).graph)
    assert [(r.name, r.branch, len(r.readers)) for r in regions] == [("n", True, 2)]
    assert [name for name, _ in refused] == ["n", "q", "k"] or "n" in dict(refused)
    found = scaled({"n": (-3, 0, 1, 2, 3, 0, -1, -2)})
    divisions = [node for node in found.graph if node.op_type == "Div"]
    assert [node.name for node in divisions] == [division_name("n")]
    readers = [use.node.op_type for use in divisions[0].outputs[0].uses()]
    assert readers == ["MatMul", "MatMul"]
    assert divisions[0].inputs[0] is not None
    assert sorted(u.node.op_type for u in divisions[0].inputs[0].uses()) == ["Add", "Div"]


def test_the_function_stays_to_the_bit() -> None:
    feed = {"x": np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)}
    before = run(model(), feed)[0]
    after = run(oir.to_proto(scaled({"n": (-3, 0, 1, 2, 3, 0, -1, -2)})), feed)[0]
    np.testing.assert_array_equal(after, before)


def test_what_can_be_folded_is_no_branch() -> None:
    text = BERT.replace("y = Add (n, a)", "y = Relu (a)")
    regions, _ = find_all(
        oir.from_proto(
            text_model(
                text, **{n: np.ones((8, 8), np.float32) for n in ("w1", "w2")},
                gain=np.ones(8, np.float32), shift=np.ones(8, np.float32),
            )
        ).graph
    )  # fmt: skip
    assert [(r.name, r.branch) for r in regions] == [("n", False)]


def test_factors_of_another_width_are_refused() -> None:
    with pytest.raises(PassError, match="it has 8 channels"):
        scaled({"n": (1, 2)})
