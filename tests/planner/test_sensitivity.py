"""Sensitivities, their sum, time limits, groups, and repair by measurement."""

from collections.abc import Callable

import pytest

from qcompile.planner.clusters import measure_clusters
from qcompile.planner.gated import gate
from qcompile.planner.gated_session import GatedSession
from qcompile.planner.grouped import measure_model
from qcompile.planner.repair import repair
from qcompile.planner.sensitivity import Sensitivities, Sensitivity, measure, measure_pairs
from qcompile.planner.units import units
from tests.planner.gated_models import MIXED, feeds, parse, quantized, state_of


@pytest.fixture(scope="module")
def session() -> GatedSession:
    state, _ = state_of(parse(MIXED))
    return GatedSession(gate(state.model, quantized(state), state.target), feeds(3), threads=1)


def ticking(step: float) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


def test_every_unit_is_measured_and_twice_gives_the_same(session: GatedSession) -> None:
    seen: list[tuple[int, int]] = []
    first = measure(session, progress=lambda done, total: seen.append((done, total)))
    assert first.complete
    assert set(first.units) == set(session.gates)
    assert all(one.samples == 3 for one in first.units.values())
    assert seen[-1] == (3 * len(session.gates), 3 * len(session.gates))
    assert measure(session).units == first.units


def test_reading_plus_writing_is_the_unit_alone(session: GatedSession) -> None:
    found = measure(session)
    on_first = session.sample_error(("Conv1",), 0)
    alone = session.sample_error(("Conv1",), 0, {"Conv1": False})
    assert found.units["Conv1"].writing == pytest.approx(on_first - alone)
    assert found.units["Reshape1"].reading == 0.0
    assert found.units["Reshape1"].writing > 0.0
    assert found.units["MatMul1"].dynamic is not None


def test_sum_predicts_plans(session: GatedSession) -> None:
    """Independent roundings add in energy; on a graph this shallow within a factor of 2."""
    found = measure(session)
    every = [gate.unit for gate in session.gates.values()]
    for plan in ({"Conv1", "Conv2", "Add1"}, {"Conv1", "MatMul1"}, set(session.gates)):
        labels = dict.fromkeys(plan, "int8")
        assert 0.5 < found.predict(every, labels) / session.evaluate_plan(labels) < 2
    assert found.all_integer is not None
    assert found.all_integer == pytest.approx(session.evaluate_plan(set(session.gates)))


def test_written_tensor_counts_once_for_float_readers_only() -> None:
    _, sites = state_of(parse(MIXED))
    every = units(sites)
    found = Sensitivities(
        {u.origin: Sensitivity(1.0, 100.0, 5.0 if u.dynamic else None, 1) for u in every}
    )
    assert found.predict(every, {"Conv1": "int8"}) == 101.0
    assert found.predict(every, dict.fromkeys(("Conv1", "Conv2", "Add1"), "int8")) == 103.0
    assert found.predict(every, {"MatMul1": "int8"}) == 1.0  # writes float
    assert found.predict(every, {"MatMul1": "int8-dynamic"}) == 5.0


def test_what_time_left_out_is_estimated_from_its_kind(session: GatedSession) -> None:
    """Time enough for one sample, not for three."""
    whole = measure(session)
    found = measure(session, search_time=20.0, clock=ticking(1.0))
    assert not found.complete
    assert set(found.units) == set(whole.units)
    assert {one.samples for one in found.units.values()} < {1, 2, 3}
    some = Sensitivities({"Conv1": Sensitivity(0.3, 0.1, None, 1)}, all_integer=0.6)
    every = [gate.unit for gate in session.gates.values()]
    assert some.filled(every)["Conv2"] == Sensitivity(0.3, 0.1, None, 0)
    assert some.filled(every)["MatMul1"].dynamic == 0.3
    nothing = Sensitivities(all_integer=0.6)
    assert nothing.filled(every)["Add1"].reading == pytest.approx(0.6 / len(every))


def test_clusters_are_measured_when_one_sample_is_too_much(session: GatedSession) -> None:
    whole = measure(session)
    seen: list[int] = []
    found = measure(
        session,
        search_time=3.0,
        clock=ticking(1.0),
        progress=lambda done, total: seen.append(done),
    )
    assert not found.complete
    assert set(found.units) == set(session.gates)
    assert {one.samples for one in found.units.values()} == {0, 1}
    assert seen == sorted(seen)
    every = [gate.unit for gate in session.gates.values()]
    convs = dict.fromkeys(("Conv1", "Conv2"), "int8")
    assert 0.3 < found.predict(every, convs) / whole.predict(every, convs) < 3


def test_clusters_end_where_single_units_begin(session: GatedSession) -> None:
    gates = list(session.gates.values())
    shares = measure_clusters(session, gates, lambda: False, lambda done: None)
    assert all(share.alone for share in shares.values())
    alone = session.sample_error(("Conv2",), 0, {"Conv2": False})
    assert shares["Conv2"].static == alone
    hurried = measure_clusters(session, gates, lambda: True, lambda done: None)
    assert set(hurried) == set(session.gates)
    assert hurried["Conv1"] == hurried["Conv2"]


def test_groups_give_the_same_sensitivities() -> None:
    state, _ = state_of(parse(MIXED))
    full = quantized(state)
    whole = measure_model(state.model, full, state.target, feeds(2), threads=1)
    parts = measure_model(state.model, full, state.target, feeds(2), threads=1, memory_limit=1)
    assert (whole.groups, whole.session is None) == (1, False)
    assert parts.groups == 4  # one for each unit with constants
    assert parts.session is None
    assert set(parts.sensitivities.units) == set(whole.sensitivities.units)
    for name, one in whole.sensitivities.units.items():
        assert parts.sensitivities.units[name].reading == pytest.approx(one.reading, rel=0.01)
    assert parts.sensitivities.all_integer == pytest.approx(
        whole.sensitivities.all_integer, rel=1e-3
    )


def test_pairs_are_measured_together(session: GatedSession) -> None:
    found = measure(session)
    pairs = measure_pairs(session, found, count=3)
    assert len(pairs) == 3
    assert found.pairs == pairs
    first = pairs[0]
    assert first.measured == session.sample_error({first.first, first.second}, 0)


def test_repair_reaches_the_limit_by_the_steps_that_help_most(session: GatedSession) -> None:
    start = dict.fromkeys(session.gates, "int8")
    whole = session.evaluate_plan(start)
    steps = repair(session, start, whole / 2)
    errors = [whole, *(step.error for step in steps)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= whole / 2 < errors[-2]
    turned = {step.origin: "float" for step in steps}
    assert session.evaluate_plan({**start, **turned}) == pytest.approx(errors[-1])


def test_repair_keeps_pinned_units_and_stops(session: GatedSession) -> None:
    start = dict.fromkeys(session.gates, "int8")
    steps = repair(session, start, 0.0, keep=frozenset(session.gates) - {"Conv1"})
    assert {step.origin for step in steps} <= {"Conv1"}
    assert repair(session, start, 0.0, search_time=0.5, clock=ticking(1.0)) == ()
    assert repair(session, start, 1.0) == ()
