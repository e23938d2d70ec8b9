from __future__ import annotations

import pytest

from qcompile.ir.errors import OptionError
from qcompile.units import Drop, parse_bytes, parse_drop, parse_milliseconds, parse_seconds


def test_drop_knows_relative_from_points() -> None:
    assert parse_drop("1%") == Drop(0.01, relative=True)
    assert parse_drop("0.5pt") == Drop(0.005, relative=False)
    assert parse_drop("1%").allowed(0.5) == pytest.approx(0.005)
    assert parse_drop("0.5pt").allowed(0.5) == pytest.approx(0.005)


@pytest.mark.parametrize("text", ["1", "", "pt", "-1%", "1 percent", "nan%"])
def test_drop_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="no unit"):
        parse_drop(text)


def test_amounts() -> None:
    assert parse_bytes("4GB", "--memory-limit") == 4_000_000_000
    assert parse_bytes("1MiB", "--memory-limit") == 1_048_576
    assert parse_milliseconds("300us", "--max-latency") == pytest.approx(0.3)
    assert parse_seconds("2m", "--search-time") == 120


@pytest.mark.parametrize("text", ["5", "5 parsecs", "ms", "0ms"])
def test_bad_amounts_name_the_option(text: str) -> None:
    with pytest.raises(OptionError, match="--max-latency"):
        parse_milliseconds(text, "--max-latency")
