"""Which candidates are worth a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from qcompile.build import Build
from qcompile.needed import Needed
from qcompile.planner.race import Candidate
from qcompile.planner.refine import MORE_DB, _may_win, _promising, gains


def candidate(name: str, speedup: float | None, sqnr_db: float | None) -> Candidate:
    return Candidate(name, cast(Build, None), speedup=speedup, sqnr_db=sqnr_db)


def names(order: list[Candidate], most: int = 2) -> list[str]:
    return [c.name for c in _promising(order, most)]


def test_the_first_and_the_fastest() -> None:
    order = [candidate("a", 2.0, 20.0), candidate("b", 1.9, 25.0), candidate("c", 2.5, 8.0)]
    assert names(order) == ["a", "c"]
    assert names(order, 3) == ["a", "c", "b"]


def test_where_the_first_is_the_fastest_the_fastest_of_the_others_follows() -> None:
    order = [candidate("a", 2.1, 43.0), candidate("b", 1.7, 46.0), candidate("c", 2.0, 33.0)]
    assert names(order) == ["a", "c"]


def test_one_that_is_as_fast_and_as_accurate_is_not_refitted_again() -> None:
    order = [candidate("a", 2.00, 14.0), candidate("b", 2.02, 14.3), candidate("c", 1.8, 20.0)]
    assert names(order) == ["a", "c"]
    assert names([candidate("a", 2.00, 14.0), candidate("b", 2.02, 16.0)]) == ["a", "b"]


def test_what_was_not_judged_is_like_nothing_else() -> None:
    assert names([candidate("a", None, 14.0), candidate("b", None, 14.0)]) == ["a", "b"]
    assert names([]) == []


def test_a_candidate_that_no_refit_lets_win_is_left() -> None:
    slow, fast = candidate("slow", 1.5, 15.0), candidate("fast", 2.5, 14.0)
    assert not _may_win(slow, MORE_DB, fast.worth())
    assert _may_win(candidate("near", 2.4, 12.0), MORE_DB, fast.worth())


def test_a_limit_that_is_kept_at_last_counts_more_than_noise() -> None:
    rule = Needed.of(35.0, 1.0)
    before = replace(candidate("a", 2.0, 33.0), channels_db=24.0, blended_db=29.0)
    better = replace(before, sqnr_db=37.0, channels_db=18.0, blended_db=28.5)
    assert gains(before, better, rule) and not gains(better, before, rule)
    assert not gains(before, replace(better, channels_db=9.0), rule)
    assert not gains(before, better, Needed.of(10.0, 1.0))
    assert gains(before, replace(better, blended_db=29.5), Needed.of(10.0, 1.0))
