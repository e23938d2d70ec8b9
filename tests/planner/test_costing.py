"""Costs of a compile: which models are measured, and that the planner's totals are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.backends.tables import get_target
from qcompile.build import Builder
from qcompile.job import Job, gather
from qcompile.options import make_options
from qcompile.planner.clock import typical_feed
from qcompile.planner.costing import job_costs
from qcompile.planner.energy import Energy
from qcompile.planner.graph_problem import problem_from_graph
from qcompile.planner.units import units
from qcompile.prepare import prepare
from qcompile.ranges import find_ranges


def test_typical_feed_is_the_one_of_the_middle_size() -> None:
    feeds = [{"x": np.zeros(n, np.float32)} for n in (9, 1, 5, 3, 7)]
    assert typical_feed(feeds)["x"].size == 5
    assert typical_feed(feeds[:2])["x"].size == 1
    assert typical_feed(feeds[:1])["x"].size == 9


@pytest.fixture(scope="module")
def job(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    rng = np.random.default_rng(0)
    feeds = [{"image": rng.random((1, 1, 28, 28), np.float32)} for _ in range(4)]
    model = models_dir / "fmnist_vit.onnx"
    options = make_options(calibration=feeds, threads=1)
    prepared = prepare(model, get_target("ort-int8"), options)
    work = tmp_path_factory.mktemp("costing")
    return Job(prepared, gather(prepared, options), options, model, work)


def test_a_plan_without_integers_is_predicted_at_the_float_model(job: Job) -> None:
    # its LayerNormalizations and Softmaxes are sites that no unit holds: they belong to the base
    ranges = find_ranges(job, None, lambda done, of: None)
    builder = Builder(job.prepared.model, job.prepared.target, ranges.chosen, job.work)
    costs = job_costs(job, builder, job.data.selection(), budget_s=0.5)
    found = units(job.prepared.sites)
    planned = [name for unit in found for name in unit.origins]
    assert {s.origin for s in job.prepared.sites} - set(planned)
    energy = Energy(problem_from_graph(found, costs.latencies(planned), {}))
    predicted = energy.total_ns(energy.numbered({}))
    # a layer left out would lack a tenth or more; short timings differ by a few hundredths
    assert predicted == pytest.approx(costs.totals_ns["float"], rel=0.08)
    assert set(costs.totals_ns) == {"float", "int8", "int8-dynamic", "original"}
    assert costs.original_ns == costs.totals_ns["original"]
