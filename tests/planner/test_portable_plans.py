"""Plans for a device: what a refit wins back need not go back to float."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as oir
import pytest

import qcompile.planner.portable_plans as module
from qcompile.build import Build
from qcompile.ir.notes import Note
from qcompile.ir.plan import FLOAT, INT8, LayerChoice, PrecisionPlan
from qcompile.learning import Learned
from qcompile.needed import Needed
from qcompile.planner.race import Candidate
from qcompile.portable_build import PortableBuilder
from tests.passes.qdq_models import state_of, text_model
from tests.passes.test_insert_qdq_trt import SM80

MODEL = "g (float[1,3,8,8] x, float[4,3,1,1] w) => (float[1,4,8,8] y) { y = Conv (x, w) }"
NAMES = [f"l{i}" for i in range(8)]
START = PrecisionPlan(tuple(LayerChoice(n, "Conv", INT8, "") for n in NAMES))
REFITTED = Learned(notes=(Note("", "refitted"),))


def tried(
    monkeypatch: pytest.MonkeyPatch,
    bad_db: float,
    gain_db: float,
    steps: Any = (11.0,),
    **options: Any,
) -> tuple[list[tuple[str, float | None]], Learned, PrecisionPlan]:
    """Names and accuracies where layer l5 costs all but ``bad_db``, and a refit gains so much."""
    state = state_of(text_model(MODEL), SM80)
    builder = PortableBuilder(state.model, state.target, {}, Path())
    empty = oir.Model(oir.Graph([], [], nodes=[]), ir_version=10)

    def accuracy(name: str, plan: PrecisionPlan) -> Candidate:
        build = Build(plan, empty, empty, Path(), (), ())
        return Candidate(name, build, sqnr_db=bad_db if plan.precision("l5") == INT8 else 25.0)

    def refitted(*given: Any) -> Candidate | None:
        candidate = given[3]
        if gain_db <= 0:
            return None
        build = Build(candidate.build.plan, empty, empty, Path(), (), (), REFITTED)
        db = candidate.sqnr_db + gain_db
        return Candidate(f"{candidate.name}, refitted", build, sqnr_db=db)

    sites = [SimpleNamespace(origin=n, role="compute") for n in NAMES]
    prepared = SimpleNamespace(sites=sites, model=state.model, target=state.target)
    monkeypatch.setattr(module, "open_race", lambda *_: SimpleNamespace(accuracy=accuracy))
    monkeypatch.setattr(module, "may_refit", lambda _: True)
    monkeypatch.setattr(module, "refitted", refitted)
    monkeypatch.setattr(module, "without_ends", lambda plan, _: plan)
    monkeypatch.setattr(PortableBuilder, "rehearsal", lambda *_: empty)
    job: Any = SimpleNamespace(prepared=prepared)
    plans = module.DevicePlans(job, builder, START, **options)
    for needed in steps:
        taken = plans.reach(Needed.of(needed))
    found = plans.tried
    return [(t.name, t.sqnr_db) for t in found], taken.learned, found[-1].plan


def test_no_layer_leaves_where_a_refit_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    found, learned, plan = tried(monkeypatch, 8.0, 4.0)
    everything = module.EVERYTHING
    assert found == [(everything, 8.0), (f"{everything}, refitted", 12.0)]
    assert learned is REFITTED
    assert plan == START


def test_layers_leave_where_it_does_not_and_the_rest_is_refitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, learned, plan = tried(monkeypatch, 3.0, 4.0)
    assert found[-1][1] == 29.0
    assert learned is REFITTED
    assert [c.origin for c in plan.layers if c.precision == FLOAT] == ["l5"]


def test_a_refit_that_gains_nothing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, learned, _ = tried(monkeypatch, 20.0, 0.0)
    assert found == [(module.EVERYTHING, 20.0)]
    assert learned == Learned()


def test_a_replay_measures_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found, learned, _ = tried(monkeypatch, 3.0, 4.0, replay=True)
    assert found == [("replayed from the lock", 3.0)]
    assert learned == Learned()


def test_more_is_given_up_where_the_gate_wants_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric may fail where the SQNR looked good enough."""
    found, learned, plan = tried(monkeypatch, 8.0, 4.0, (11.0, 20.0))
    assert [name for name, _ in found[:2]] == [module.EVERYTHING, f"{module.EVERYTHING}, refitted"]
    assert found[-1][1] == 29.0
    assert learned is REFITTED
    assert [c.origin for c in plan.layers if c.precision == FLOAT] == ["l5"]
