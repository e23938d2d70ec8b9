"""Likelihoods of tokens, from logits of any size."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.compare import compare_outputs
from qcompile.language import Language, Perplexity
from qcompile.probabilities import Likeness, surprise


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_surprise_is_the_negative_logarithm_of_the_softmax(shift: float) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(0, 6, (2, 5, 700)) + shift).astype(np.float32)
    tokens = rng.integers(0, 700, (2, 5))
    wanted = -np.take_along_axis(log_softmax(logits), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(surprise(logits, tokens), wanted, rtol=2e-6, atol=1e-6)


def test_what_cannot_be_is_infinitely_surprising_and_nan_stays_nan() -> None:
    logits = np.array([[[0.0, -np.inf], [0.0, np.nan]]], np.float32)
    found = surprise(logits, np.array([[1, 0]]))
    assert np.isinf(found[0, 0]) and np.isnan(found[0, 1])


def test_two_models_predictions_are_compared_token_by_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qcompile.row_sums.AT_ONCE", 90)  # three tokens at once
    rng = np.random.default_rng(1)
    first = rng.normal(0, 4, (2, 7, 30)).astype(np.float32)
    second = first + rng.normal(0, 1, first.shape).astype(np.float32)
    tokens = rng.integers(0, 30, (2, 6))
    found = Likeness()
    found.add(first, second, tokens)
    found.add(first[:1], first[:1], tokens[:1])
    a, b = log_softmax(first), log_softmax(second)
    assert (found.samples, found.positions) == (2, 21)
    assert found.kl == pytest.approx((np.exp(a) * (a - b)).sum() / 21)
    assert found.agreement == ((a.argmax(-1) == b.argmax(-1)).sum() + 7) / 21
    loss = [surprise(x[:, :-1], tokens).sum() for x in (first, second)]
    again = surprise(first[:1, :-1], tokens[:1]).sum()
    assert found.perplexity == pytest.approx(np.exp((np.array(loss) + again) / 18), rel=1e-6)
    ends = found.ends(2)
    assert (ends.samples, ends.positions) == (2, 6)
    last = surprise(first[:, -2:-1], tokens[:, -1:]).sum()
    last += surprise(first[:1, -2:-1], tokens[:1, -1:]).sum()
    assert ends.perplexity[0] == pytest.approx(np.exp(last / 3), rel=1e-6)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("given", [1, 3, 5, 8])
def test_logits_of_fewer_or_more_tokens_are_those_at_the_end(given: int, told: bool) -> None:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 30, (1, 5))
    logits = rng.normal(0, 4, (1, given, 30)).astype(np.float32)
    other = logits + rng.normal(0, 1, logits.shape).astype(np.float32)
    pairs = Perplexity(Language("ids", "logits"))
    rows = compare_outputs({}, "", None, {"logits": logits}, {"logits": other})
    pairs.take({"ids": ids}, {"logits": logits}, {"logits": other}, rows if told else {})
    count = min(given, 5)
    wanted = [
        float(np.exp(surprise(x[:, -count:][:, :-1], ids[:, 6 - count :]).mean()))
        if count > 1
        else 1.0
        for x in (logits, other)
    ]
    assert pairs.both() == pytest.approx(wanted, rel=1e-6)
    assert pairs.likeness.positions == count
    a, b = (log_softmax(x[:, -count:]) for x in (logits, other))
    assert pairs.likeness.kl == pytest.approx((np.exp(a) * (a - b)).sum() / count)
    assert pairs.likeness.agreement == (a.argmax(-1) == b.argmax(-1)).mean()
