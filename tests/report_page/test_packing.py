"""Packed rows are smaller and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from qcompile.report_page.packing import Names, pack, pack_column


def unpacked(column: Any) -> list[Any]:
    """What `unpack.js` does."""
    if isinstance(column, list):
        return column
    return [None if i < 0 else column["words"][i] for i in column["at"]]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1, 2, 3],
        ["a", "b", "c"],
        ["a", "a", None, "b", "a"],
        [None, None],
        ["a", "a", "a", 1],
        [{"k": 1}, {"k": 2}],
    ],
)
def test_a_column_comes_back(values: list[Any]) -> None:
    assert unpacked(pack_column(values)) == values


def test_rows_come_back_with_none_for_what_they_lacked() -> None:
    rows = [{"a": "x", "b": 1}, {"a": "x"}, {"a": "x", "c": [2]}]
    packed = pack(rows)
    assert unpacked(packed["a"]) == ["x", "x", "x"]
    assert unpacked(packed["b"]) == [1, None, None]
    assert unpacked(packed["c"]) == [None, None, [2]]


def test_names_are_numbered_once() -> None:
    names = Names()
    assert names.all(["b", "a", "b"]) == [0, 1, 0]
    assert names.listed == ["b", "a"]
