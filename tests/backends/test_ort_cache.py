"""Caches in 8 bits in the graph: where they are rounded, where widened, and that steps add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as oir
import pytest

from qcompile.backends.ort import max_opset, open_session
from qcompile.backends.ort_bits import has_integer_cache, has_quantization
from qcompile.backends.ort_cache import store_cache
from qcompile.ir.cache import CachePair, from_integers
from qcompile.ir.errors import PassError
from qcompile.oldest_runtime import oldest_runtime

HEADS, WIDTH = 2, 8
SHAPE = f"[b, {HEADS}, p, {WIDTH}]"

CONCAT = f"""
<ir_version: 8, opset_import: ["" : 17]>
g (float[b, {HEADS}, s, {WIDTH}] new, float{SHAPE} past) => (float y, float[b, {HEADS}, t, {WIDTH}] present)
{{
  present = Concat <axis = AXIS> (past, new)
  squares = Mul (present, present)
  y = ReduceSum <keepdims = 0> (squares)
}}
"""

GROUP_QUERY = f"""
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v, float{SHAPE} past_k, float{SHAPE} past_v,
   int32[b] lengths, int32 total) => (float[b, s, 32] y, float[b, {HEADS}, t, {WIDTH}] new_k,
   float[b, {HEADS}, t, {WIDTH}] new_v)
{{
  y, new_k, new_v = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = {HEADS} MORE>
    (q, k, v, past_k, past_v, lengths, total)
}}
"""

ATTENTION = f"""
<ir_version: 11, opset_import: ["" : 23]>
g (float[b, s, 32] q, float[b, s, 16] k, float[b, s, 16] v, float{SHAPE} past_k, float{SHAPE} past_v)
  => (float[b, s, 32] y, float[b, {HEADS}, t, {WIDTH}] new_k, float[b, {HEADS}, t, {WIDTH}] new_v)
{{
  y, new_k, new_v = Attention <q_num_heads = 4, kv_num_heads = {HEADS}> (q, k, v, , past_k, past_v)
}}
"""


def scale(seed: int) -> np.ndarray:
    """Peaks of 4 to 8 over 127."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(4, 8, (1, HEADS, 1, WIDTH)) / 127).astype(np.float32)


def stored(
    text: str, names: dict[str, str], *, group_query: bool = True
) -> tuple[bytes, bytes, dict[str, int], oir.Model]:
    """The float model and the one with its caches in 8 bits."""
    proto = onnx.parser.parse_model(text)
    model = oir.from_proto(proto)
    pairs = [CachePair(past, out, scale(i)) for i, (past, out) in enumerate(names.items())]
    used, ways = store_cache(model, pairs, group_query=group_query)
    inside = "inside GroupQueryAttention" in ways
    assert {pair.scale.shape for pair in used} == {(1, HEADS, 1, WIDTH if inside else 1)}
    made = oir.to_proto(model)
    onnx.checker.check_model(made)
    return proto.SerializeToString(), made.SerializeToString(), ways, model


def types(model: oir.Model) -> dict[str, Any]:
    return {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}


@pytest.mark.parametrize("axis", ["2", "-2"])
def test_what_is_new_is_rounded_once_in_front_of_a_concat(axis: str) -> None:
    before, after, ways, model = stored(CONCAT.replace("AXIS", axis), {"past": "present"})
    assert ways == {"rounded in front of Concat": 1}
    assert [n.op_type for n in model.graph] == [
        "QuantizeLinear", "Concat", "DequantizeLinear", "Mul", "ReduceSum",
    ]  # fmt: skip
    found = types(model)
    assert found["past"] == found["present"] == oir.DataType.INT8
    assert found["new"] == oir.DataType.FLOAT
    session, exact = open_session(after), open_session(before)
    rng = np.random.default_rng(5)
    rows = [rng.standard_normal((1, HEADS, n, WIDTH)).astype(np.float32) for n in (3, 1, 1)]
    past = np.zeros((1, HEADS, 0, WIDTH), np.float32)
    for new in rows:
        outputs = session.run({"new": new, "past": past})
        past = outputs["present"]
    whole = np.concatenate(rows, 2)
    np.testing.assert_allclose(past, whole, atol=float(scale(0).max()) / 2 * 1.001)
    wanted = exact.run({"new": whole[:, :, :0], "past": past})["y"]
    np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-5)


def test_a_face_of_floats_and_the_integers_behind_it() -> None:
    _, after, _, _ = stored(CONCAT.replace("AXIS", "2"), {"past": "present"})
    session = open_session(after)
    assert {p.name: p.type for p in session.inputs} == dict.fromkeys(
        ("new", "past"), "tensor(float)"
    )
    raw = {port.name: port.type for port in session.raw.get_inputs()}
    assert raw == {"new": "tensor(float)", "past": "tensor(int8)"}
    feed = {
        "new": np.ones((1, HEADS, 1, WIDTH), np.float32),
        "past": np.full((1, HEADS, 2, WIDTH), 2.0, np.float32),
    }
    own = session.given(feed)
    assert own["past"].dtype == np.int8
    assert session.given(own)["past"] is own["past"]
    present = session.run_raw(own)["present"]
    assert present.dtype == np.int8
    np.testing.assert_array_equal(present[:, :, :2], own["past"])
    np.testing.assert_array_equal(
        session.run(feed)["present"], from_integers(present, session.cache[0].scale)
    )


def test_a_concat_that_does_more_keeps_its_floats() -> None:
    text = CONCAT.replace("AXIS", "2").replace("(past, new)", "(new, past)")
    _, after, ways, model = stored(text, {"past": "present"})
    assert ways == {"rounded behind Concat": 1}
    assert [n.op_type for n in model.graph].count("QuantizeLinear") == 1
    feed = {
        "new": np.ones((1, HEADS, 1, WIDTH), np.float32),
        "past": np.full((1, HEADS, 1, WIDTH), -3.0, np.float32),
    }
    found = open_session(after).run(feed)["present"]
    np.testing.assert_allclose(found[:, :, 0], 1.0, atol=0.04)
    np.testing.assert_allclose(found[:, :, 1], -3.0, atol=0.04)


def test_its_length_is_asked_of_the_integers() -> None:
    text = CONCAT.replace("AXIS", "2").replace(
        "  squares", "  sizes = Shape (past)\n  long = Cast <to = 1> (sizes)\n  squares"
    )
    text = text.replace("(squares)\n", "(both)\n").replace(
        "  y =", "  total = ReduceSum (long)\n  both = Mul (squares, total)\n  y ="
    )
    _, _, ways, model = stored(text, {"past": "present"})
    assert ways == {"rounded in front of Concat": 1}
    asks = next(n for n in model.graph if n.op_type == "Shape")
    assert asks.inputs[0] is not None
    assert asks.inputs[0].name == "past"


def attention_feeds(rng: np.random.Generator, tokens: int, group_query: bool, done: int) -> Any:
    feed = {
        n: rng.standard_normal((1, tokens, w)).astype(np.float32)
        for n, w in (("q", 32), ("k", 16), ("v", 16))
    }
    if group_query:
        feed["lengths"] = np.array([done + tokens - 1], np.int32)
        feed["total"] = np.array(done + tokens, np.int32)
    return feed


@pytest.mark.parametrize(
    ("form", "inside"),
    [
        ("", True),
        (", softcap = 20.0", True),
        (", local_window_size = 3", True),
        (", scale = 0.3", True),
        ("", False),
        (", smooth_softmax = 1", False),
        ("Attention", False),
    ],
)
def test_attention_decodes_as_float_does_on_what_the_integers_say(form: str, inside: bool) -> None:
    group_query = form != "Attention"
    if inside and not has_integer_cache():
        pytest.skip("this ONNX Runtime's GroupQueryAttention takes no integers")
    if not group_query and (max_opset() < 23 or not has_quantization(23)):
        pytest.skip("this ONNX Runtime does not round at opset 23")
    text = GROUP_QUERY.replace("MORE", form) if group_query else ATTENTION
    names = {"past_k": "new_k", "past_v": "new_v"}
    before, after, ways, model = stored(text, names, group_query=inside or bool(form))
    way = "inside GroupQueryAttention" if inside else "rounded behind GroupQueryAttention"
    assert ways == {way if group_query else "new rows rounded behind Attention": 2}
    assert set(types(model).values()) >= {oir.DataType.INT8}
    exact, session = open_session(before), open_session(after)
    rng = np.random.default_rng(7)
    empty = np.zeros((1, HEADS, 0, WIDTH), np.float32)
    past = {"past_k": empty, "past_v": empty}
    done = 0
    for tokens in (4, 1, 1, 1):
        feed = attention_feeds(rng, tokens, group_query, done)
        done += tokens
        wanted = exact.run({**feed, **past})
        found = session.run({**feed, **past})
        np.testing.assert_allclose(found["y"], wanted["y"], atol=0.06)
        for name in ("new_k", "new_v"):
            np.testing.assert_allclose(found[name], wanted[name], atol=0.04)
        past = {"past_k": found["new_k"], "past_v": found["new_v"]}
        # what lies in the cache is not rounded a second time
        raw = session.run_raw(session.given({**feed, **past}))["new_k"]
        np.testing.assert_array_equal(raw[:, :, :done], session.given(past)["past_k"])


def test_a_new_form_of_an_operator_needs_a_new_runtime() -> None:
    _, _, _, model = stored(GROUP_QUERY.replace("MORE", ""), {"past_k": "new_k", "past_v": "new_v"})
    assert oldest_runtime(model).text == "1.27"


def test_a_cache_that_is_not_there_is_an_error() -> None:
    model = oir.from_proto(onnx.parser.parse_model(CONCAT.replace("AXIS", "2")))
    with pytest.raises(PassError, match="'other' -> 'present' is not in the lowered graph"):
        store_cache(model, [CachePair("other", "present", scale(0))], group_query=False)


def test_what_rounds_is_asked_of_the_runtime() -> None:
    assert has_quantization(17) and not has_quantization(9), "int8 came with opset 10"
