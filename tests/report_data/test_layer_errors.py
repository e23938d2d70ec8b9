"""Which tensors are taken out together."""

from __future__ import annotations

from qcompile.report_data.layer_errors import TOGETHER, _groups


def test_groups_keep_the_order_and_the_limit() -> None:
    sizes = {"a": TOGETHER // 2, "b": TOGETHER // 2, "c": TOGETHER // 3, "d": 2 * TOGETHER}
    assert _groups(list(sizes), sizes, 6) == [["a", "b"], ["c"]]


def test_more_than_all_runs_can_take_is_thinned_evenly() -> None:
    sizes = dict.fromkeys("abcdefgh", TOGETHER)
    assert _groups(list(sizes), sizes, 2) == [["a"], ["e"]]
    assert _groups([], {}, 2) == []
