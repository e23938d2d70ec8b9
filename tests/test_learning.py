"""Learned weights and bias shifts: better on data that was not seen, or undone and said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile import weight_inputs
from qcompile.learning import Learned, learn_weights
from tests.learning_models import Subject, images, subject


def learn(one: Subject, work: Path, **options: Any) -> Learned:
    feeds = options.pop("feeds", one.feeds)
    return learn_weights(
        one.model, one.state.target, one.ranges, one.plan, feeds, work=work, threads=1, **options
    )


def same(a: Learned, b: Learned) -> bool:
    return (
        a.weights.keys() == b.weights.keys()
        and a.bias_shifts.keys() == b.bias_shifts.keys()
        and all(np.array_equal(w.values, b.weights[k].values) for k, w in a.weights.items())
        and all(np.array_equal(s, b.bias_shifts[k]) for k, s in a.bias_shifts.items())
    )


CONV = "g (float[N,6,8,8] x) => (float[N,8,6,6] y) { y = Conv (x, w1, b1) }"


def test_learning_lowers_the_error_on_new_data(tmp_path: Path) -> None:
    one, fresh = subject(CONV), images(8, 99)
    shifted = learn(one, tmp_path, method="nearest")
    learned = learn(one, tmp_path)
    assert not shifted.weights
    assert set(learned.weights) == {"w1"}
    assert set(learned.bias_shifts) == {"n_y"}
    plain, biased, best = (
        one.error_db(found, fresh, activations=False) for found in (Learned(), shifted, learned)
    )
    assert best > biased + 3 > plain + 6
    assert one.error_db(learned, fresh) > one.error_db(Learned(), fresh)


def test_every_kind_of_layer_says_what_it_gained(tmp_path: Path) -> None:
    learned = learn(subject(), tmp_path)
    assert set(learned.weights) == {"w1", "w2", "w3"}
    assert set(learned.bias_shifts) == {"n_a", "n_d", "n_y"}
    assert all(note.changed and "dB lower" in note.text for note in learned.notes)
    assert learned.findings() == ("weights of 3 layers learned, biases of 3 shifted",)


def test_the_same_data_give_the_same_weights(tmp_path: Path) -> None:
    assert same(learn(subject(), tmp_path), learn(subject(), tmp_path))


def test_a_memory_limit_takes_more_passes_and_changes_nothing(tmp_path: Path) -> None:
    assert same(learn(subject(), tmp_path, memory_limit=1), learn(subject(), tmp_path))


def test_no_time_leaves_the_nearest_integers_with_shifts(tmp_path: Path) -> None:
    found = learn(subject(), tmp_path, time_budget_s=0)
    assert not found.weights
    assert len(found.bias_shifts) == 3
    assert all("the time ran out" in note.text for note in found.notes)


def test_what_does_not_help_held_back_samples_is_undone(tmp_path: Path) -> None:
    """The judge sees the negative of what taught: every shift doubles the mean error there."""
    one = subject(CONV)
    feeds = [*one.feeds[:3], {"x": -one.feeds[3]["x"]}]
    found = learn(one, tmp_path, feeds=feeds, method="nearest")
    assert not found.bias_shifts
    assert "nothing else lowers the error" in found.notes[0].text
    assert not found.notes[0].changed
    assert found.findings() == ()


def test_wide_layers_are_learned_in_runs_of_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_inputs, "WIDEST", 20)
    one = subject(CONV)
    found = learn(one, tmp_path)
    assert any("in 3 runs of channels" in note.text for note in found.notes)
    plain, best = (
        one.error_db(one_found, images(8, 99), activations=False)
        for one_found in (Learned(), found)
    )
    assert best > plain + 3


def test_shifts_can_be_left_out(tmp_path: Path) -> None:
    one, fresh = subject(CONV), images(8, 99)
    found = learn(one, tmp_path, shift_biases=False)
    assert found.weights
    assert not found.bias_shifts
    plain = one.error_db(Learned(), fresh, activations=False)
    assert one.error_db(found, fresh, activations=False) > plain + 3


def test_a_weight_of_two_readers_is_learned_for_both(tmp_path: Path) -> None:
    one = subject(
        """g (float[N,6,8,8] x) => (float[N,8,6,6] y) {
          t = Tanh (x)  a = Conv (x, w1, b1)  c = Conv (t, w1)  s = Tanh (c)  y = Add (a, s) }"""
    )
    found = learn(one, tmp_path)
    assert set(found.weights) == {"w1"}
    assert set(found.bias_shifts) == {"n_a", "n_c"}
    assert not np.array_equal(found.bias_shifts["n_a"], found.bias_shifts["n_c"])


def test_one_sample_teaches_and_judges(tmp_path: Path) -> None:
    one = subject()
    found = learn(one, tmp_path, feeds=one.feeds[:1])
    assert found.weights


def test_layers_that_read_nan_keep_the_nearest(tmp_path: Path) -> None:
    one = subject()
    feeds = [{"x": np.full_like(f["x"], np.nan)} for f in one.feeds[:4]]
    found = learn(one, tmp_path, feeds=feeds)
    assert not found.weights
    assert not found.bias_shifts
    assert all("NaN" in note.text for note in found.notes)


@pytest.mark.parametrize(
    ("graph", "node"),
    [
        ("{ a = MatMul (x, w3)  c = Add (a, b3)  y = Tanh (c) }", "n_a"),
        ("{ f = Reshape (x, k)  t = Gemm <transB = 1> (f, w4, b3)  y = Reshape (t, l) }", "n_t"),
    ],
)
def test_products_are_learned_like_convs(tmp_path: Path, graph: str, node: str) -> None:
    one = subject(f"g (float[1,6,8,8] x) => (float[1,6,8,5] y) {graph}")
    found = learn(one, tmp_path)
    assert len(found.weights) == 1
    assert set(found.bias_shifts) == {node}
    assert one.error_db(found, images(4, 9)) > one.error_db(Learned(), images(4, 9))
