"""Channels of one output that differ by orders of magnitude are judged by kind."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.channel_groups import (
    ChannelSums,
    channel_axes,
    channels_text,
    runs,
    split_channels,
)
from qcompile.compare import OutputComparison, OutputResult, compare_outputs
from qcompile.limits import accuracy_checks, output_notes
from qcompile.verdict import FAIL, PASS

RNG = np.random.default_rng(0)


def detections(seed: int, anchors: int = 50, axis: int = 1) -> np.ndarray:
    """Boxes in pixels beside scores, as one tensor (1, 4 + 3, anchors)."""
    rng = np.random.default_rng(seed)
    boxes, scores = rng.uniform(0, 640, (1, 4, anchors)), rng.uniform(0, 1, (1, 3, anchors)) ** 4
    both = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    return both if axis == 1 else both.transpose(0, 2, 1)


def compared(*pairs: tuple[np.ndarray, np.ndarray]) -> OutputResult:
    found: dict[str, OutputComparison] = {}
    for index, (a, b) in enumerate(pairs):
        compare_outputs(found, str(index), None, {"y": a}, {"y": b})
    return found["y"].result()


@pytest.mark.parametrize("axis", [1, 2])
def test_wrong_scores_beside_right_boxes(axis: int) -> None:
    pairs = []
    for seed in range(3):
        good = detections(seed, axis=axis)
        bad = good.copy()
        bad[:, 4:] = 0.0 if axis == 1 else bad[:, 4:]
        if axis == 2:
            bad[:, :, 4:] = 0.0
        pairs.append((good, bad))
    found = compared(*pairs)
    assert found.sqnr_db is not None and found.sqnr_db > 50.0
    assert [g.text for g in found.groups] == ["channels 0..3", "channels 4..6"]
    assert {g.axis for g in found.groups} == {axis}
    assert found.worst_group is not None and found.worst_group.sqnr_db == pytest.approx(0.0)
    assert found.least_db == pytest.approx(0.0)
    # exact boxes make up for 10 dB of lost scores and no more
    assert found.blended_db == pytest.approx(10.0, abs=0.1)
    checks = accuracy_checks(found, 30.0, 0.9)
    assert [(c.state, c.limit) for c in checks] == [(PASS, 30.0), (FAIL, 10.0)]
    assert "SQNR 0.0 dB in channels 4..6 (10 dB needed)" in checks[1].text
    assert any("channels 4..6 0.0 dB" in note for note in output_notes(found))


def test_a_decibel_counts_the_same_in_each_kind() -> None:
    """Boxes 6 dB better for scores 6 dB worse gain nothing; one sample alone decides little."""

    def noisy(boxes: float, scores: list[float]) -> OutputResult:
        pairs = []
        for seed, share in enumerate(scores):
            good = detections(seed)
            sign = np.where(np.arange(good.size).reshape(good.shape) % 2, 1.0, -1.0)
            bad = good * (1 + sign * np.r_[[boxes] * 4, [share] * 3][None, :, None])
            pairs.append((good, bad.astype(np.float32)))
        return compared(*pairs)

    before = noisy(0.04, [0.05] * 4)
    assert before.blended_db == pytest.approx(10 * np.log10(25 * 20), abs=0.1)
    traded = noisy(0.02, [0.1] * 4)
    assert traded.blended_db == pytest.approx(before.blended_db, abs=0.1)
    moved = noisy(0.02, [0.04, 0.04, 0.04, 0.25])
    assert before.channels_db is not None and moved.channels_db is not None
    assert moved.channels_db < before.channels_db - 5
    assert moved.blended_db is not None and before.blended_db is not None
    assert moved.blended_db > before.blended_db


def test_a_limit_below_the_floor_is_that_of_the_channels_too() -> None:
    good = detections(0)
    checks = accuracy_checks(compared((good, good * np.float32(1.5))), 3.0, 0.9)
    assert [(c.state, c.limit) for c in checks] == [(PASS, 3.0), (PASS, 3.0)]


def test_rows_of_results_in_another_number() -> None:
    """Post-processed results: the channels stay, the rows do not."""
    found = compared(*[(d, d) for d in (detections(s, 10 + s, axis=2)[0] for s in range(3))])
    assert [g.text for g in found.groups] == ["channels 0..3", "channels 4..6"]


@pytest.mark.parametrize(
    ("what", "shape", "scale"),
    [
        ("probabilities, one class in all samples", (1, 10), [0.99] + [1e-5] * 9),
        ("scores of many classes", (1, 80, 30), np.geomspace(0.9, 1e-6, 80)),
        ("boxes as shares", (1, 30, 6), [0.9, 0.9, 0.5, 0.5, 1e-3, 1e-4]),
        ("a spectrum that falls off", (1, 100, 20), np.geomspace(1e4, 1e-4, 100)),
        ("its constant component alone", (1, 100, 20), [1e-3] + [50.0] * 99),
        ("dead channels", (1, 8, 20), [0.0, 0.0] + [5.0] * 6),
        ("outlier channels", (1, 16, 64), [12.0, 8.0] + [1.0] * 62),
        ("no channels", (1000,), [1.0]),
        ("one channel", (4, 1), [1.0]),
    ],
)
def test_one_kind(what: str, shape: tuple[int, ...], scale: list[float]) -> None:
    factors = np.asarray(scale)
    axis = next((i for i, n in enumerate(shape) if i and n == len(factors)), len(shape) - 1)
    y = RNG.uniform(0.5, 1.0, shape) * np.moveaxis(
        np.broadcast_to(factors, (*shape[:axis], *shape[axis + 1 :], len(factors))), -1, axis
    )
    assert compared((y.astype(np.float32), (y * 1.01).astype(np.float32))).groups == (), what


def test_three_kinds_and_a_few_that_carry_nothing() -> None:
    peaks = np.array([600.0, 3e4, 0.9, 500.0, 2e4, 0.4])
    assert [list(g) for g in split_channels(peaks)] == [[1, 4], [0, 3], [2, 5]]
    many = np.array([600.0] * 50 + [1.5])
    assert len(split_channels(many)) == 1


def test_axes_and_texts() -> None:
    assert channel_axes((1, 84, 8400)) == (1,)
    assert channel_axes((1, 8400, 85)) == (2,)
    assert channel_axes((8, 5)) == (1,)
    assert channel_axes((8,)) == channel_axes(()) == ()
    assert runs(np.array([0, 1, 2, 5])) == ((0, 2), (5, 5))
    assert channels_text(((4, 4),)) == "channel 4"
    assert channels_text(((0, 0), (2, 2), (4, 4), (6, 6), (8, 9))) == "channels 0, 2, 4, 6, ..."


def test_an_axis_of_another_size_holds_no_channels() -> None:
    sums = ChannelSums()
    for size in (5, 6):
        ref = np.ones((1, 7, size))
        sums.update(ref, 0 * ref)
    assert set(sums.axes or {}) == {1}
    sums.update(np.ones((3,)), np.zeros(3))
    assert sums.axes == {} and sums.split() == []
