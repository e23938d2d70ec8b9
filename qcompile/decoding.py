"""How a compiled language model generates, beside float: token after token, behind a cache if it has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.backends.ort import Session
from qcompile.data.inputs import Feed, InputSpec
from qcompile.data.text import token_feed
from qcompile.greedy import is_causal, same_prefix
from qcompile.probabilities import Likeness
from qcompile.rollout import Rollout, carrying
from qcompile.stopwatch import Deadline

__all__ = ["Decoding", "NextTokens", "Reading", "compare_decoding"]

GREEDY_STEPS = 24
FORCED_STEPS = 64

PROMPTS = 6
"""Samples whose beginnings are continued, and whose ends are read token after token."""

SECONDS = 8.0
"""No further prompt is begun after so long, of the processor's time, in each of the two."""

PART = 32
"""Tokens that are read at once where a cache in 8 bits is to show in a whole sample."""


@dataclass(frozen=True)
class Reading:
    """How a sample is read: in one call, or in parts, each behind the cache that those before it left.

    Attributes:
        tokens: input that takes token ids.
        logits: output that holds the next token's logits.
        rollout: None for one call.
        part: tokens that are read at once.
    """

    tokens: str
    logits: str
    rollout: Rollout | None = None
    part: int = PART

    def read(self, run: Callable[[Feed], Mapping[str, Any]], feed: Feed) -> npt.NDArray[Any]:
        """Logits of all tokens, (rows, tokens, vocabulary)."""
        ids = np.asarray(feed[self.tokens], np.int64)
        if self.rollout is None or not self.rollout.decoder or len(ids) != 1:
            return np.asarray(run(feed)[self.logits])
        past: dict[str, Any] = {}
        found = []
        for start in range(0, ids.shape[1], self.part):
            part = ids[0, start : start + self.part]
            outputs = run(token_feed(self.rollout.decoder, part, past, feed))
            past = {into: outputs[out] for out, into in self.rollout.state.items()}
            found.append(outputs[self.logits])
        return np.concatenate(found, 1)


@dataclass(frozen=True)
class NextTokens:
    """Predictions at the end of samples, both models reading the text's own tokens.

    Attributes:
        samples: of the text.
        steps: tokens of each that were read one by one behind the cache (in one call without one).
        agreement: share of steps with the same most likely token.
        kl: mean Kullback-Leibler divergence from float's distribution, in nats.
        perplexity: float, artifact.
    """

    samples: int
    steps: int
    agreement: float
    kl: float
    perplexity: tuple[float, float]


@dataclass(frozen=True)
class Decoding:
    """How a compiled model generates, beside float.

    Attributes:
        greedy_prompts: beginnings that were continued.
        greedy_steps: most tokens generated behind each.
        greedy_prefix: how many of them are float's before the first difference, mean over prompts.
        greedy_agreement: the same as a share.
        next_tokens: predictions where both models read the same tokens.
        prefill_tokens: tokens of a prefill.
        prefill_ms: median time of it; float, artifact.
        prefill_tokens_per_s: the same as a rate.
        decode_ms: median time of one token; float, artifact.
        decode_tokens_per_s: the same as a rate.
        decode_speedup: ratio of these.
        cached: the decoding step reads a cache (else it is a sequence of one token).
        cache_bytes: of a cache of ``prefill_tokens``; float, artifact; None without one.
    """

    greedy_prompts: int
    greedy_steps: int
    greedy_prefix: float
    greedy_agreement: float
    next_tokens: NextTokens
    prefill_tokens: int
    prefill_ms: tuple[float, float]
    prefill_tokens_per_s: tuple[float, float]
    decode_ms: tuple[float, float]
    decode_tokens_per_s: tuple[float, float]
    decode_speedup: float
    cached: bool
    cache_bytes: tuple[int, int] | None


def compare_decoding(
    sessions: list[Session],
    specs: tuple[InputSpec, ...],
    feeds: Sequence[Feed],
    tokens: str,
    logits: str,
    rollout: Rollout | None,
    likeness: Likeness,
    time_both: Callable[[Feed], tuple[float, float]],
    prefill_ms: tuple[float, float] | None = None,
) -> Decoding | None:
    """Float and artifact side by side; None for samples of many rows.

    Args:
        sessions: float, artifact; emptied before anything is timed, so that no model is in memory twice.
        specs: the float model's inputs.
        feeds: samples.
        tokens: input that takes token ids.
        logits: output that holds the next token's logits.
        rollout: how the cache is carried over.
        likeness: predictions on samples that were read in one call.
        time_both: milliseconds of float and artifact for a feed.
        prefill_ms: of a sample, where it was measured before.
    """
    feed = feeds[0]
    rows = np.asarray(feed[tokens], np.int64)
    if len(rows) != 1:
        return None
    prompt = rows[0]
    cached = rollout if rollout is not None and rollout.decoder else None
    state: Mapping[str, str] = {} if cached is None else cached.state
    guess = not state and is_causal(sessions[0], specs, prompt, logits, feed)
    prefixes = []
    for one in _in_time(feeds):
        ids = np.asarray(one[tokens], np.int64)[0]
        prefixes.append(
            same_prefix(sessions, specs, ids, logits, one, state, GREEDY_STEPS, guess=guess)
        )
    prefix = float(np.mean(prefixes))
    if cached is not None:
        next_tokens = _next_tokens(sessions, feeds, tokens, logits, cached)
    else:
        steps = min(FORCED_STEPS, max(1, len(prompt) - 1))
        next_tokens = _as_next_tokens(likeness.ends(steps), steps)
    step = _step_feed(sessions[0], specs, prompt, feed, state)
    cache_bytes = _cache_bytes(sessions, token_feed(specs, prompt, others=feed), state)
    sessions.clear()
    prefill, decode = prefill_ms or time_both(feed), time_both(step)
    return Decoding(
        greedy_prompts=len(prefixes),
        greedy_steps=GREEDY_STEPS,
        greedy_prefix=prefix,
        greedy_agreement=prefix / GREEDY_STEPS,
        next_tokens=next_tokens,
        prefill_tokens=len(prompt),
        prefill_ms=prefill,
        prefill_tokens_per_s=(1e3 * len(prompt) / prefill[0], 1e3 * len(prompt) / prefill[1]),
        decode_ms=decode,
        decode_tokens_per_s=(1e3 / decode[0], 1e3 / decode[1]),
        decode_speedup=decode[0] / decode[1],
        cached=bool(state),
        cache_bytes=cache_bytes,
    )


def _in_time(feeds: Sequence[Feed]) -> Iterator[Feed]:
    """Some samples, spread over all, as many as time allows."""
    deadline = Deadline(SECONDS)
    picked = np.unique(np.linspace(0, len(feeds) - 1, min(PROMPTS, len(feeds))).astype(int))
    for number, index in enumerate(picked):
        if number and deadline.passed():
            return
        yield feeds[int(index)]


def _next_tokens(
    sessions: Sequence[Session],
    feeds: Sequence[Feed],
    tokens: str,
    logits: str,
    rollout: Rollout,
) -> NextTokens:
    """Read one by one behind a cache."""
    likeness = Likeness()
    steps = max(FORCED_STEPS, rollout.steps)
    for feed in _in_time(feeds):
        ids = np.asarray(feed[tokens], np.int64)[0]
        steps = min(steps, max(1, len(ids) - 1))
        first, second = (_ends(s, feed, logits, steps, rollout) for s in sessions)
        likeness.add(first, second, ids[None, len(ids) - steps + 1 :])
    return _as_next_tokens(likeness, steps)


def _as_next_tokens(likeness: Likeness, steps: int) -> NextTokens:
    return NextTokens(likeness.samples, steps, likeness.agreement, likeness.kl, likeness.perplexity)


def _ends(
    session: Session, feed: Feed, logits: str, steps: int, rollout: Rollout
) -> npt.NDArray[Any]:
    """Logits behind the last tokens of a sample, (1, steps, vocabulary)."""
    run = carrying(session, replace(rollout, steps=steps))
    return np.stack([run(step, feed)[logits][:, -1] for step in range(steps)], 1)


def _step_feed(
    session: Session,
    specs: tuple[InputSpec, ...],
    prompt: npt.NDArray[np.int64],
    base: Feed,
    state: Mapping[str, str],
) -> Feed:
    """One token, behind the cache that the prompt leaves where the model has one."""
    if not state:
        return token_feed(specs, prompt[:1], others=base)
    outputs = session.run(token_feed(specs, prompt, others=base))
    past = {into: outputs[out] for out, into in state.items()}
    return token_feed(specs, prompt[-1:], past, base)


def _cache_bytes(
    sessions: Sequence[Session], feed: Feed, state: Mapping[str, str]
) -> tuple[int, int] | None:
    if not state:
        return None
    first, second = (
        sum(a.nbytes for a in s.run_raw(s.given(feed), list(state)).values()) for s in sessions
    )
    return first, second
