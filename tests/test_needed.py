"""One rule: what an output needs, and what kinds of channels in it need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.limits import step_checks
from qcompile.needed import FLOOR_DB, Needed
from qcompile.rollout import StepResult
from qcompile.verdict import FAIL, PASS

DB = st.floats(-60.0, 120.0)


def test_kinds_of_channels_need_the_floor_and_no_more_than_the_whole() -> None:
    assert Needed.of(35.0) == Needed(35.0, FLOOR_DB)
    assert Needed.of(35.0, 1.0) == Needed(36.0, FLOOR_DB + 1.0)
    assert Needed.of(6.0) == Needed(6.0, 6.0)


@pytest.mark.parametrize(
    ("whole", "kind", "kept"),
    [(36.0, 12.0, True), (34.0, 30.0, False), (50.0, 9.0, False), (36.0, None, True)],
)
def test_both_are_held_against_a_limit(whole: float, kind: float | None, kept: bool) -> None:
    assert Needed.of(35.0).kept(whole, kind) is kept


def test_an_artifact_without_float_outputs_keeps_it() -> None:
    assert Needed.of(35.0).kept(None, None)
    assert Needed.of(35.0).reached_db(None, None) is None


@given(DB, DB, st.floats(0.0, 60.0))
def test_what_is_reached_is_the_largest_limit_kept_at_its_leeway(
    whole: float, kind: float, limit: float
) -> None:
    needed = Needed.of(limit)
    reached = needed.reached_db(whole, kind)
    assert reached is not None
    assert needed.raised_to(reached - 1e-6).kept(whole, kind)
    assert not needed.raised_to(reached + 1e-6).kept(whole, kind)
    assert needed.raised_to(reached).leeway_db == pytest.approx(needed.leeway_db)


def test_steps_are_held_against_the_same_rule() -> None:
    row = StepResult(8, "y", False, 36.0, 12.0)
    assert [(c.state, c.limit) for c in step_checks(row, 35.0)] == [(PASS, 35.0), (PASS, 10.0)]
    lost = StepResult(8, "y", False, 36.0, 9.0)
    states = [(c.state, c.text) for c in step_checks(lost, 35.0)]
    assert [s for s, _ in states] == [PASS, FAIL]
    assert "9.0 dB in its worst kind of channels at step 8" in states[1][1]
    assert step_checks(StepResult(8, "h", True, 0.0), 35.0) == []
