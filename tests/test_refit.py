"""Refitting a plan: layers make up for what was lost before them, if held-back samples agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile.refit as module
from qcompile.learning import Learned, learn_weights
from qcompile.refit import refit_plan
from tests.learning_models import Subject, images, subject

CHAIN = """
g (float[N,6,8,8] x) => (float[N,8,6,6] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  y = Conv <group = 8> (r, w2)
}
"""
PRODUCT = """
g (float[N,6,8,8] x) => (float[N,6,8,5] y) {
  t = MatMul (x, w5)  u = Add (t, b1)  v = Relu (u)  a = MatMul (v, w3)  y = Add (a, b3) }
"""


def refit(one: Subject, learned: Learned, **options: Any) -> Learned:
    feeds = options.pop("feeds", one.feeds)
    return refit_plan(
        one.model,
        one.portable(learned),
        one.state.target,
        one.ranges,
        one.plan,
        learned,
        feeds,
        threads=1,
        **options,
    )


def learn(one: Subject, work: Path) -> Learned:
    return learn_weights(
        one.model, one.state.target, one.ranges, one.plan, one.feeds, work=work, threads=1
    )


@pytest.mark.parametrize("graph", [CHAIN, PRODUCT])
def test_clipped_ranges_are_made_up_for(tmp_path: Path, graph: str) -> None:
    """Ranges that cut off a tenth of every tensor's span: a bias and a gain make up for much."""
    one, fresh = subject(graph, clip=0.8), images(8, 99)
    learned = learn(one, tmp_path)
    found = refit(one, learned)
    assert one.error_db(found, fresh) > one.error_db(learned, fresh) + 0.3
    own = found.notes[len(learned.notes) :]
    assert own
    assert all(note.changed and "dB lower on held-back samples" in note.text for note in own)


def test_the_model_and_what_was_learned_stay_as_they_were(tmp_path: Path) -> None:
    one = subject(CHAIN, clip=0.8)
    learned = learn(one, tmp_path)
    before = {key: weight.values.copy() for key, weight in learned.weights.items()}
    nodes = [node.op_type for node in one.model.graph]
    refit(one, learned)
    assert [node.op_type for node in one.model.graph] == nodes
    assert all(np.array_equal(learned.weights[key].values, before[key]) for key in before)


def test_the_same_data_give_the_same_result(tmp_path: Path) -> None:
    one = subject(CHAIN, clip=0.8)
    learned = learn(one, tmp_path)
    first, second = refit(one, learned), refit(one, learned)
    for key, weight in first.weights.items():
        np.testing.assert_array_equal(weight.values, second.weights[key].values)
    for name, shift in first.bias_shifts.items():
        np.testing.assert_array_equal(shift, second.bias_shifts[name])


def test_no_time_changes_nothing_and_says_so(tmp_path: Path) -> None:
    one = subject(CHAIN, clip=0.8)
    learned = learn(one, tmp_path)
    found = refit(one, learned, time_budget_s=0)
    assert found.weights == learned.weights
    assert found.bias_shifts == learned.bias_shifts
    assert found.notes[-1].text == "the time ran out before 2 layers were refitted"


def test_what_does_not_help_held_back_samples_is_not_taken(tmp_path: Path) -> None:
    """The judges are unlike what teaches: shifts learned on one are wrong for the other."""
    one = subject(CHAIN)
    learned = learn(one, tmp_path)
    rng = np.random.default_rng(0)
    noise = [{"x": rng.standard_normal((1, 6, 8, 8)).astype(np.float32)} for _ in range(8)]
    found = refit(one, learned, feeds=[*noise, *one.feeds[:2]], held={8, 9})
    changed = {n.where for n in found.notes[len(learned.notes) :] if n.changed}
    assert "n_a" not in changed


def test_without_samples_to_judge_nothing_is_done(tmp_path: Path) -> None:
    one = subject(CHAIN)
    learned = learn(one, tmp_path)
    assert refit(one, learned, feeds=one.feeds[:1]) is learned
    assert refit(one, learned, held=range(16)) is learned


def test_a_memory_limit_gives_up_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []

    class Counted(module._Refit):
        def step(self, *args: Any) -> None:
            super().step(*args)
            counts.append((len(self.exact.live), self.judges))

    monkeypatch.setattr(module, "_Refit", Counted)
    one = subject(CHAIN, clip=0.8)
    learned = learn(one, tmp_path)
    found = refit(one, learned, memory_limit=1)
    assert counts == [(4, 1), (4, 1)]  # one judges, three teach
    assert found.weights.keys() == learned.weights.keys()
    counts.clear()
    refit(one, learned)
    assert counts == [(16, 4), (16, 4)]


def test_a_weight_of_two_readers_keeps_its_integers(tmp_path: Path) -> None:
    one = subject(
        """g (float[N,6,8,8] x) => (float[N,8,6,6] y) {
          t = Tanh (x)  a = Conv (x, w1, b1)  c = Conv (t, w1)  s = Tanh (c)  y = Add (a, s) }""",
        clip=0.8,
    )
    learned = learn(one, tmp_path)
    found = refit(one, learned)
    np.testing.assert_array_equal(found.weights["w1"].values, learned.weights["w1"].values)
    fresh = images(8, 99)
    assert one.error_db(found, fresh) > one.error_db(learned, fresh)
