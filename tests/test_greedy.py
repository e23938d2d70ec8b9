"""How far two models generate the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qcompile.backends.ort import Session
from qcompile.data.inputs import InputSpec
from qcompile.greedy import is_causal, same_prefix

SPECS = (InputSpec("input_ids", "int64", ("b", "s")),)
SIZE = 50


class Counting(Session):
    """A causal "model": the next token is a function of the sum of all before; counts its runs."""

    def __init__(self, differs_at: int | None = None, causal: bool = True) -> None:
        self.runs, self._differs_at, self._causal = 0, differs_at, causal

    def run(self, feed: Any, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        self.runs += 1
        ids = np.asarray(feed["input_ids"])[0]
        nexts = next_tokens(ids if self._causal else ids * 0 + ids.sum())
        if self._differs_at is not None and len(ids) > self._differs_at:
            nexts[self._differs_at :] = (nexts[self._differs_at :] + 1) % SIZE
        return {"logits": np.eye(SIZE, dtype=np.float32)[nexts][None]}


def next_tokens(ids: np.ndarray) -> np.ndarray:
    return np.cumsum(ids * 7 + 3) % 5 + np.arange(len(ids)) % 3


def generated(prompt: np.ndarray, steps: int) -> np.ndarray:
    ids = prompt
    for _ in range(steps):
        ids = np.append(ids, next_tokens(ids)[-1])
    return ids


TEXT = np.random.default_rng(0).integers(0, 9, 20)


@pytest.mark.parametrize("differs_at", [None, 9, 10, 11, 17])
@pytest.mark.parametrize("text", [TEXT, generated(TEXT[:10], 10)])
def test_guesses_find_what_single_steps_find(differs_at: int | None, text: np.ndarray) -> None:
    found = []
    for guess in (False, True):
        pair = Counting(), Counting(differs_at)
        base = {"input_ids": text[None]}
        found.append(same_prefix(pair, SPECS, text, "logits", base, {}, 8, guess=guess))
    assert found[0] == found[1] == (8 if differs_at is None else max(0, min(8, differs_at - 9)))


def test_a_text_that_is_what_float_would_say_is_read_once() -> None:
    text = generated(TEXT[:10], 10)
    pair = Counting(), Counting()
    assert same_prefix(pair, SPECS, text, "logits", {}, {}, 8, guess=True) == 8
    assert [model.runs for model in pair] == [1, 1]


def test_later_tokens_change_nothing_in_a_causal_model_alone() -> None:
    assert is_causal(Counting(), SPECS, TEXT, "logits", {})
    assert not is_causal(Counting(causal=False), SPECS, TEXT, "logits", {})
