"""Plans: a file that users read, edit, diff and pass back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.ir.errors import OptionError
from qcompile.ir.plan import FLOAT, INT8, INT8_DYNAMIC, LayerChoice, PrecisionPlan

PLAN = PrecisionPlan(
    (
        LayerChoice("/a/conv", "Conv", INT8, "fast", sensitivity=0.01, float_ns=2000, int_ns=500),
        LayerChoice("/a/relu", "Relu", INT8, "taken in"),
        LayerChoice("/head/fc", "Gemm", FLOAT, "sensitive", pinned=True),
        LayerChoice("odd[0]", "Add", FLOAT, "float input"),
    )
)


def test_json_round_trip_is_exact_and_stable() -> None:
    text = PLAN.to_json()
    assert PrecisionPlan.from_json(text) == PLAN
    assert PrecisionPlan.from_json(text).to_json() == text
    assert text.count("\n") == len(PLAN.layers) + 2, "one layer a line, so that diffs read well"


@given(
    st.lists(
        st.builds(
            LayerChoice,
            origin=st.text(min_size=1),
            op_type=st.text(),
            precision=st.sampled_from((FLOAT, INT8, INT8_DYNAMIC)),
            reason=st.text(),
            sensitivity=st.none() | st.floats(allow_nan=False, allow_infinity=False),
            pinned=st.booleans(),
        ),
        unique_by=lambda layer: layer.origin,
    )
)
def test_any_plan_survives_json(layers: list[LayerChoice]) -> None:
    plan = PrecisionPlan(tuple(layers))
    assert PrecisionPlan.from_json(plan.to_json()) == plan


def test_a_plan_written_by_hand_needs_origin_and_precision_alone() -> None:
    row = '{"origin": "/a/conv", "precision": "int8"}'
    (layer,) = PrecisionPlan.from_json(f'{{"version": 1, "layers": [{row}]}}').layers
    assert (layer.precision, layer.reason) == (INT8, "given in the plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable"),
        ('{"version": 9, "layers": []}', "plan version 9 cannot be read"),
        ('{"layers": []}', "not readable"),
        ("[]", "not readable"),
        ('{"version": 1, "layers": [{"origin": "a"}]}', "not readable"),
        (
            '{"version": 1, "layers": [{"origin": "a", "precision": "int8", "x": 1}]}',
            "not readable",
        ),
        (
            '{"version": 1, "layers": [{"origin": "a", "precision": "int7"}]}',
            "precision 'int7' of node 'a' is unknown; use one of float, int8, int8-dynamic",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PrecisionPlan.from_json(text)


def test_one_node_has_one_choice() -> None:
    layer = LayerChoice("a", "Conv", INT8, "")
    with pytest.raises(OptionError, match="names node 'a' twice"):
        PrecisionPlan((layer, layer))


def test_pins_match_exactly_before_they_match_as_patterns() -> None:
    """A name with brackets is a pattern too; the name wins."""
    assert PLAN.pin({"odd[0]": INT8}).precision("odd[0]") == INT8
    assert [layer.precision for layer in PLAN.pin({"/a/*": FLOAT}).layers[:2]] == [FLOAT, FLOAT]


def test_later_selectors_win() -> None:
    plan = PLAN.pin({"*": FLOAT, "/a/conv": INT8})
    assert [layer.precision for layer in plan.layers] == [INT8, FLOAT, FLOAT, FLOAT]


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ({"/a/cnv": INT8}, "selector '/a/cnv' matches no quantizable node.*nearest: /a/conv"),
        ({"/a/conv": "int9"}, "precision 'int9' for '/a/conv' is unknown"),
    ],
)
def test_pins_that_mean_nothing_are_errors(selectors: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PLAN.pin(selectors)


def test_pinned_layers_keep_their_choice() -> None:
    changed = PLAN.with_choice(["/a/conv", "/head/fc"], INT8_DYNAMIC, "planned")
    assert changed.precision("/a/conv") == INT8_DYNAMIC
    assert changed.precision("/head/fc") == FLOAT
    assert changed.precision("not there") == FLOAT
    assert json.loads(changed.to_json())["layers"][0]["reason"] == "planned"
