"""Language models: perplexity, and how far a compiled model's next tokens are from float's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.backends.ort import Session, open_session
from qcompile.data.inputs import Feed, InputSpec
from qcompile.data.text import token_input
from qcompile.decoding import Decoding, Reading, compare_decoding
from qcompile.measure import measure_pair
from qcompile.probabilities import Likeness, surprise
from qcompile.rollout import Rollout
from qcompile.row_sums import Rows
from qcompile.scores import Metric

__all__ = [
    "Generation",
    "Language",
    "Perplexity",
    "compare_generation",
    "language_of",
    "perplexity",
    "perplexity_metric",
]

VOCABULARY = 1000
"""An output of rank 3 whose last axis is at least so long is taken for logits."""

FEEDS = 6

STEP_S = 4.0
"""Seconds for timing a decoding step of both models, as sessions that are deployed run it."""


@dataclass(frozen=True)
class Language:
    """Where a language model reads and writes.

    Attributes:
        tokens: input that takes token ids.
        logits: output that holds the next token's logits.
        fixed: it takes sequences of one length alone.
    """

    tokens: str
    logits: str
    fixed: bool = False


def language_of(session: Session, specs: tuple[InputSpec, ...]) -> Language | None:
    """Names of tokens and logits, None when this is no language model."""
    tokens = token_input(specs)
    if tokens is None:
        return None
    for port in session.outputs:
        last = port.shape[-1] if port.shape else None
        wide = isinstance(last, int) and last >= VOCABULARY
        if len(port.shape) == 3 and port.dtype == np.float32 and (wide or "logits" in port.name):
            fixed = isinstance((tokens.shape or (None, None))[1], int)
            return Language(tokens.name, port.name, fixed)
    return None


def perplexity(
    run: Callable[[Feed], Mapping[str, Any]],
    feeds: Sequence[Feed],
    tokens: str,
    logits: str,
    rollout: Rollout | None = None,
) -> float:
    """Exp of the mean negative log-likelihood of each next token, in nats.

    With ``rollout`` samples are read in parts, each behind the cache that those before it left.
    """
    loss, count = 0.0, 0
    reading = Reading(tokens, logits, rollout)
    for feed in feeds:
        ids = np.asarray(feed[tokens], np.int64)
        loss += float(surprise(reading.read(run, feed)[:, :-1], ids[:, 1:]).sum())
        count += ids[:, 1:].size
    return float(np.exp(loss / max(1, count)))


def perplexity_metric(feeds: Sequence[Feed], language: Language, rollout: Rollout) -> Metric:
    """Perplexity on held-back text, for the gate, in parts behind a cache."""
    tokens, logits = language.tokens, language.logits
    return Metric("perplexity", lambda run: perplexity(run, feeds, tokens, logits, rollout), True)


class Perplexity:
    """Perplexity of both models, and all that their predictions tell, from what the gate runs anyway.

    Attributes:
        likeness: of the predictions.
    """

    name = "perplexity"
    lower_is_better = True

    def __init__(self, language: Language) -> None:
        self._language = language
        self.likeness = Likeness()

    def take(
        self,
        feed: Mapping[str, Any],
        ref: Mapping[str, Any],
        got: Mapping[str, Any],
        rows: Mapping[str, Rows],
    ) -> None:
        """Take in a sample; an artifact whose logits have another shape predicts nothing."""
        name = self._language.logits
        first, second = (np.asarray(outputs[name]) for outputs in (ref, got))
        if first.shape != second.shape:
            second = np.full_like(first, np.nan)
        ids = np.asarray(feed[self._language.tokens], np.int64)
        # some models give logits of the last tokens alone, others put something in front of the tokens
        count = min(ids.shape[1], first.shape[1])
        following = ids[:, ids.shape[1] - count + 1 :]
        known = rows.get(name) if count == first.shape[1] else None
        self.likeness.add(first[:, -count:], second[:, -count:], following, known)

    def both(self) -> tuple[float, float]:
        """Float's, the artifact's."""
        return self.likeness.perplexity


@dataclass(frozen=True)
class Generation:
    """How a compiled language model predicts and generates, beside float.

    Attributes:
        perplexity: on the samples compared; float, artifact.
        positions: next-token predictions compared.
        agreement: share of them with the same most likely token.
        kl: mean Kullback-Leibler divergence from float's distribution, in nats.
        decoding: None for a model of a fixed length or many rows, which cannot generate one token
            after another.
    """

    perplexity: tuple[float, float]
    positions: int
    agreement: float
    kl: float
    decoding: Decoding | None


def compare_generation(
    float_model: Path,
    artifact: Path,
    specs: tuple[InputSpec, ...],
    feeds: Sequence[Feed],
    language: Language,
    *,
    rollout: Rollout | None = None,
    threads: int | None = None,
    known: Likeness | None = None,
    prefill_ms: tuple[float, float] | None = None,
) -> Generation:
    """Both models side by side on held-back samples; a cache in 8 bits is read behind, in parts.

    Args:
        float_model: its file.
        artifact: its file.
        specs: the float model's inputs.
        feeds: samples.
        language: where tokens and logits are.
        rollout: how a cache is carried over.
        threads: inside operators.
        known: predictions on the samples, each read in one call, where they were compared before.
        prefill_ms: of a sample, float and artifact, where it is known.
    """
    sessions = [open_session(p, threads=threads) for p in (float_model, artifact)]
    tokens, logits = language.tokens, language.logits
    likeness = Likeness()
    if known is not None and known.samples and not sessions[1].cache:
        likeness = known
    else:
        reading = Reading(tokens, logits, rollout if sessions[1].cache else None)
        for feed in feeds[:FEEDS]:
            first, second = (reading.read(s.run, feed) for s in sessions)
            likeness.add(first, second, np.asarray(feed[tokens], np.int64)[:, 1:])

    def time_both(feed: Feed) -> tuple[float, float]:
        timed = measure_pair(
            float_model, artifact, [feed], load=False, threads=threads, budget_s=STEP_S
        )
        return timed.models["float"].p50_ms, timed.models["artifact"].p50_ms

    decoding = None
    if not language.fixed:
        decoding = compare_decoding(
            sessions, specs, feeds, tokens, logits, rollout, likeness, time_both, prefill_ms
        )
    return Generation(
        likeness.perplexity, likeness.positions, likeness.agreement, likeness.kl, decoding
    )
