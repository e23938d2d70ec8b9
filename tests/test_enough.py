"""How closely ratios must be known before timing ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from qcompile.enough import Enough
from qcompile.limits import Limits, timed_enough
from tests.clock import Clock, timed

GATE = Enough(loose=0.1, limit=1.0)


def around(middle: float, share: float, groups: int) -> list[float]:
    """Ratios that lie in turns above and below a middle."""
    return [middle * (1 + share * (-1) ** i) for i in range(groups)]


@pytest.mark.parametrize(
    ("middle", "share", "groups", "known"),
    [
        (2.7, 0.02, 3, True),  # far from the limit: +-10 % will do, after three groups
        (2.7, 0.02, 2, False),
        (2.7, 0.08, 6, True),
        (2.7, 0.15, 6, False),
        (1.05, 0.02, 3, False),  # close to it: +-2 %, and six groups
        (1.05, 0.001, 5, False),
        (1.05, 0.01, 6, True),
        (1.05, 0.04, 6, False),
        (0.4, 0.02, 3, True),  # as clear on the other side
        (0.95, 0.04, 8, False),
    ],
)
def test_a_ratio_near_the_limit_must_be_known_closer(
    middle: float, share: float, groups: int, known: bool
) -> None:
    assert GATE.known({"artifact": around(middle, share, groups)}) is known


def test_no_interval_that_straddles_the_limit_is_known() -> None:
    for middle in (0.9, 0.99, 1.0, 1.02, 1.1, 1.3):
        for share in (0.005, 0.02, 0.05, 0.1, 0.3):
            values = around(middle, share, 8)
            if min(values) < 1.0 < max(values) and share > 0.02:
                assert not GATE.known({"artifact": values})


def test_without_a_limit_all_are_known_closely() -> None:
    assert not Enough().known({"a": around(2.7, 0.05, 8)})
    assert Enough().known({"a": around(2.7, 0.01, 8)})


def test_what_stands_beside_decides_nothing() -> None:
    gate = Enough(loose=0.1, limit=1.0, beside=("fused",))
    ratios = {"artifact": around(2.0, 0.01, 3), "fused": around(1.01, 0.02, 3)}
    assert gate.known(ratios)
    assert not GATE.known(ratios)


def test_rivals_are_told_apart_and_others_are_not() -> None:
    race = Enough(half_width=0.03, loose=0.06, margin=3.0, least=4, worth={"a": 0.9, "b": 0.9})
    close = {"a": around(2.0, 0.015, 3), "b": around(2.05, 0.015, 3)}
    apart = {"a": around(2.0, 0.015, 3), "b": around(1.7, 0.015, 3)}
    assert not race.known(close)
    assert race.known(apart)


def test_what_is_worth_less_is_timed_no_further() -> None:
    race = Enough(worth={"a": 0.9, "b": 0.9, "c": 0.5})
    ratios = {"a": [2.0, 2.0], "b": [1.9, 1.9], "c": [2.1, 2.1], "beside": [0.1, 0.1]}
    assert race.behind(ratios) == ["c"]
    assert race.behind({name: values[:1] for name, values in ratios.items()}) == []


def test_rivals_of_one_known_before_need_not_be_told_apart() -> None:
    race = Enough(half_width=0.03, loose=0.06, margin=3.0, least=4, worth={"a": 0.9, "b": 0.9})
    ratios = {"a": around(2.0, 0.015, 3), "b": around(2.05, 0.015, 3)}
    assert not race.known(ratios)
    assert replace(race, to_beat=2.3).known(ratios)
    assert replace(race, to_beat=4.0).behind(ratios) == ["a", "b"]


def test_hopeless_is_what_the_rest_of_the_time_does_not_help() -> None:
    noisy, calm = {"a": around(2.7, 0.2, 3)}, {"a": around(2.7, 0.01, 3)}
    assert GATE.hopeless(noisy, 3.0, 10.0)
    assert not GATE.hopeless(noisy, 0.003, 10.0)  # three thousand groups will do
    assert not GATE.hopeless(calm, 3.0, 10.0)
    assert not GATE.hopeless({"a": [2.7]}, 1.0, 10.0)


def test_vague_looks_at_what_was_timed_to_the_end() -> None:
    ratios = {"a": around(2.7, 0.01, 4), "left out": around(1.0, 0.3, 2)}
    assert not GATE.vague(ratios)
    assert GATE.vague({"a": around(2.7, 0.3, 4)})


def test_a_limit_on_latency_asks_for_all_that_can_be_known() -> None:
    assert timed_enough(Limits(max_latency_ms=5.0)) == Enough()
    assert timed_enough(Limits(min_speedup=1.4)).limit == 1.4


def test_a_model_far_behind_is_left_out_of_later_groups() -> None:
    clock, noise = Clock(), count()
    opened: list[str] = []
    cost = {"float": 4_000_000, "good": 1_000_000, "bad": 3_900_000}

    def open_one(name: str) -> Callable[[int], None]:
        opened.append(name)
        factor = 1 + 0.05 * (next(noise) % 3)
        return clock.runner(lambda _: int(cost[name] * factor))

    enough = Enough(worth={"good": 1.0, "bad": 1.0})
    found = timed(clock, list(cost), open_one, budget_s=5.0, enough=enough)
    assert len(found["ratios"]["bad"]) == 2
    assert len(found["ratios"]["good"]) == found["groups"] > 2
    assert opened.count("bad") == 2


def test_timing_ends_when_all_are_left_behind() -> None:
    clock = Clock()
    found = timed(
        clock,
        ["float", "a"],
        lambda _: clock.runner(lambda _: 1_000_000),
        budget_s=5.0,
        enough=Enough(worth={"a": 1.0}, to_beat=3.0),
    )
    assert found["groups"] == 2


def test_timing_that_will_stay_vague_is_given_up() -> None:
    clock, speeds = Clock(), count()

    def open_one(name: str) -> Callable[[int], None]:
        factor = 1 + (next(speeds) % 5) / 4
        return clock.runner(lambda _: int(1_000_000 * factor))

    def seconds(again_s: float) -> float:
        found = timed(clock, ["float", "int"], open_one, budget_s=2.0, again_s=again_s)
        return float(found["seconds"])

    assert seconds(2.0) < 1.0
    assert seconds(0.0) >= 2.0
