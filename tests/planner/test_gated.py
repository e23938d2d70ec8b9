"""The gated session against models that really hold the Q/DQ of each plan."""

import itertools

import numpy as np
import onnx_ir as oir
import pytest

from qcompile.backends.ort import open_session
from qcompile.ir.errors import CalibrationError
from qcompile.planner.gated import gate
from qcompile.planner.gated_session import (
    EMULATION,
    WORST_ERROR,
    GatedSession,
    kinds_of,
    mean_signals,
    relative_errors,
)
from qcompile.planner.units import units
from tests.planner.gated_models import MIXED, feeds, parse, quantized, serialized, state_of

LSTM = """
<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[5, 1, 3] x) => (float[5, 1, 1, 4] y)
<float[1, 16, 3] w, float[1, 16, 4] r>
{
   y = LSTM <hidden_size: int = 4> (x, w, r)
}
"""


@pytest.fixture(scope="module")
def mixed() -> tuple[GatedSession, oir.Model]:
    state, _ = state_of(parse(MIXED))
    gated = gate(state.model, quantized(state), state.target)
    return GatedSession(gated, feeds(), threads=1), state.model


def test_units_own_what_their_kernel_takes_in() -> None:
    _, sites = state_of(parse(MIXED))
    found = {u.origin: u for u in units(sites)}
    assert [s.origin for s in found["Conv1"].absorbed] == ["Relu1"]
    assert "Relu1" not in found
    assert "Softmax1" not in found
    assert found["Conv1"].readers == ("Conv2", "Add1")
    assert not found["Conv1"].float_readers
    assert found["Reshape1"].float_readers  # Softmax
    assert found["MatMul1"].dynamic
    assert not found["MatMul1"].writes_always


def test_every_plan_equals_the_really_quantized_model(
    mixed: tuple[GatedSession, oir.Model],
) -> None:
    session, _ = mixed
    state, _ = state_of(parse(MIXED))
    names = list(session.gates)
    plans = [set(names), set(), *({n} for n in names)]
    plans += [set(pair) for pair in itertools.combinations(names, 2)]
    for plan in plans:
        model = quantized(state, plan | ({"Relu1"} if "Conv1" in plan else set()))
        real = open_session(serialized(model), threads=1, config=EMULATION).run(session.samples[0])
        found = session.run(plan, session.samples[0])
        for name, expected in real.items():
            np.testing.assert_allclose(
                found[name], expected, rtol=1e-5, atol=1e-6, err_msg=str(plan)
            )


def test_no_flag_is_the_float_model(mixed: tuple[GatedSession, oir.Model]) -> None:
    session, model = mixed
    plain = open_session(serialized(model), threads=1).run(session.samples[1])
    for name, expected in session.run((), session.samples[1]).items():
        np.testing.assert_allclose(expected, plain[name], rtol=1e-5, atol=1e-6)
    assert session.evaluate_plan(()) == 0.0


def test_float_model_stays_as_it_is() -> None:
    state, _ = state_of(parse(MIXED))
    full = quantized(state)
    before = serialized(state.model), serialized(full)
    gate(state.model, full, state.target)
    assert (serialized(state.model), serialized(full)) == before


def test_dynamic_form_rounds_inputs_at_run_time(mixed: tuple[GatedSession, oir.Model]) -> None:
    session, _ = mixed
    static = session.evaluate_plan({"MatMul1": "int8"})
    dynamic = session.evaluate_plan({"MatMul1": "int8-dynamic"})
    assert 0 < dynamic < static  # ranges of -4 to 4 are wider than the data


def test_lstm_has_a_dynamic_form_only() -> None:
    state, _ = state_of(parse(LSTM))
    session = GatedSession(
        gate(state.model, quantized(state), state.target), feeds(shape=(5, 1, 3)), threads=1
    )
    assert session.evaluate_plan({"LSTM1": "int8"}) == 0.0
    assert 1e-8 < session.evaluate_plan({"LSTM1": "int8-dynamic"}) < 0.01


def test_only_some_units_gated() -> None:
    state, _ = state_of(parse(MIXED))
    gated = gate(state.model, quantized(state), state.target, only={"Conv2"})
    session = GatedSession(gated, feeds(), threads=1)
    assert list(session.gates) == ["Conv2"]
    assert session.evaluate_plan({"Conv1"}) == 0.0
    assert session.evaluate_plan({"Conv2"}) > 0.0


def test_nothing_gated_runs_as_float() -> None:
    state, _ = state_of(parse(MIXED))
    gated = gate(state.model, quantized(state, set()), state.target, only=set())
    assert gated.count == 0
    assert GatedSession(gated, feeds(), threads=1).evaluate_plan({"Conv1"}) == 0.0


def test_the_worst_output_is_what_a_limit_is_about() -> None:
    """Two outputs, one exact and one quantized; a silent sample weighs as little as it is loud."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] exact, float[N,3] y)
        <float[3,3] w = {0.5,-0.3,0.2,0.1,0.7,-0.6,0.4,0.9,-0.8}>
        { exact = Relu(x) y = MatMul(x, w) }"""
    )
    state, _ = state_of(model)
    gated = gate(state.model, quantized(state), state.target)
    loud = feeds(shape=(4, 3))
    quiet = [{"x": np.full((4, 3), 1e-7, np.float32)}]
    (name,) = [n for n, g in gated.gates.items() if g.unit.site.op_type == "MatMul"]
    session = GatedSession(gated, loud, threads=1)
    assert session.worst_error({name}) == pytest.approx(session.evaluate_plan({name}), rel=0.5)
    both = GatedSession(gated, [*loud, *quiet], threads=1)
    assert both.evaluate_plan({name}) > 10 * session.evaluate_plan({name})
    assert both.worst_error({name}) == pytest.approx(session.worst_error({name}), rel=1e-3)
    assert session.worst_error(()) == 0.0


def test_samples_are_needed() -> None:
    state, _ = state_of(parse(MIXED))
    with pytest.raises(CalibrationError, match="at least one sample"):
        GatedSession(gate(state.model, quantized(state), state.target), [])


def test_kinds_of_channels_are_outputs_of_their_own() -> None:
    y = np.array([[[300.0, 500.0], [0.5, 0.25]]], np.float32)
    kinds = kinds_of([{"y": y, "ids": np.array([1])}, {"y": 2 * y, "ids": np.array([2])}])
    assert {n: [(a, list(g)) for a, g in k] for n, k in kinds.items()} == {
        "y": [(1, [0]), (1, [1])]
    }
    lost = np.where(y > 1, y, 0.0).astype(np.float32)
    assert relative_errors({"y": y}, {"y": lost})["y"] < 1e-5
    assert relative_errors({"y": y}, {"y": lost}, kinds) == {"y[0]": 0.0, "y[1]": 1.0}
    # what is nearly silent in one sample is related to all samples
    silent = np.where(y > 1, y, 0.001).astype(np.float32)
    wrong = np.where(y > 1, y, 0.002).astype(np.float32)
    signals = mean_signals([{"y": y}, {"y": silent}], kinds)
    assert relative_errors({"y": silent}, {"y": wrong}, kinds)["y[1]"] == pytest.approx(1.0)
    found = relative_errors({"y": silent}, {"y": wrong}, kinds, signals)
    assert found["y[1]"] == pytest.approx(2e-6 / (0.3125 / 2), rel=1e-3)
    # another number of rows is as wrong as ever
    assert relative_errors({"y": y}, {"y": y[:, :1]}, kinds) == {"y": WORST_ERROR}


def test_relative_errors() -> None:
    y = np.array([3.0, 4.0], np.float32)
    nan = np.array([np.nan, 4.0], np.float32)
    mask = np.array([-np.inf, 2.0], np.float32)
    ids = np.array([1, 2, 3, 4])
    assert relative_errors({"y": y}, {"y": y + np.float32(0.5)}) == {"y": pytest.approx(0.02)}
    assert relative_errors({"y": y}, {"y": nan}) == {"y": WORST_ERROR}
    assert relative_errors({"y": y}, {"y": y[:1]}) == {"y": WORST_ERROR}
    assert relative_errors({"y": 0 * y}, {"y": y}) == {"y": WORST_ERROR}
    assert relative_errors({"y": mask}, {"y": mask}) == {"y": 0.0}
    assert relative_errors({"y": y, "ids": ids}, {"y": y, "ids": ids[::-1]}) == {"y": 0.0}
    assert relative_errors({"ids": ids}, {"ids": np.array([1, 2, 3, 5])}) == {"ids": 0.25}


def test_kinds_of_channels_have_a_leeway_beside_the_whole() -> None:
    """Boxes of some hundred beside scores below one: the whole says nothing about the scores."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2,3] x) => (float[N,2,3] y)
        <float[3,3] w = {0.5,-0.3,0.2,0.1,0.7,-0.6,0.4,0.9,-0.8}, float[2,1] k = {400.0, 0.25}>
        { p = MatMul(x, w) y = Mul(p, k) }"""
    )
    state, _ = state_of(model)
    gated = gate(state.model, quantized(state), state.target)
    (name,) = [n for n, g in gated.gates.items() if g.unit.site.op_type == "MatMul"]
    feed = {"x": np.concatenate([np.full((4, 1, 3), 3.0), np.full((4, 1, 3), 0.1)], 1)}
    samples = [{"x": feed["x"].astype(np.float32)}]
    strict, half, whole = (
        GatedSession(gated, samples, threads=1, leeway=leeway) for leeway in (1.0, 0.5, 0.0)
    )
    assert set(strict.kinds) == {"y"}
    assert strict.worst_error({name}) > 10 * whole.worst_error({name}) > 0.0
    assert half.worst_error({name}) == pytest.approx(strict.worst_error({name}) / 2)
    errors = [session.evaluate_plan({name}) for session in (strict, half, whole)]
    assert errors[0] > errors[1] > errors[2] == pytest.approx(whole.worst_error({name}))
    assert errors[1] == pytest.approx((errors[0] + errors[2]) / 2)
