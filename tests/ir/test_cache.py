"""Caches in 8 bits: arithmetic, and what a model's metadata say of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.ir.cache import (
    CACHE_KEY,
    CachePair,
    from_integers,
    read_pairs,
    to_integers,
    write_pairs,
)
from qcompile.ir.errors import ModelError


@given(st.integers(-128, 127), st.floats(-18, 18))
def test_integers_come_back_as_they_were(number: int, power: float) -> None:
    one = np.full((1, 1, 1, 1), 10**power, np.float32)
    wide = from_integers(np.full((1, 1, 2, 1), number, np.int8), one)
    assert to_integers(wide, one).ravel().tolist() == [number] * 2


def test_what_lies_beyond_is_clipped() -> None:
    found = to_integers(np.array([1e9, -1e9], np.float32), np.float32(0.5))
    assert found.tolist() == [127, -128]


def test_metadata_give_every_scale_back() -> None:
    scale = np.random.default_rng(0).lognormal(size=(1, 2, 1, 3)).astype(np.float32)
    (pair,) = read_pairs({CACHE_KEY: write_pairs([CachePair("past", "present", scale)])})
    assert (pair.past, pair.present) == ("past", "present")
    np.testing.assert_array_equal(pair.scale, scale)
    assert read_pairs({"author": "someone"}) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        (json.dumps({"version": 1, "tensors": [{"past": "p"}]}), "cannot be read"),
        (json.dumps({"version": 9, "tensors": []}), "version 9; this qcompile reads 1"),
    ],
)
def test_metadata_that_cannot_be_read_are_said(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_pairs({CACHE_KEY: text})
