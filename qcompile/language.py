"""Language models: perplexity, and how far a compiled model's next tokens are from float's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.backends.ort import Session, open_session
from qcompile.data.inputs import Feed, InputSpec
from qcompile.data.text import token_feed, token_input
from qcompile.rollout import Rollout
from qcompile.scores import Metric

__all__ = [
    "Generation",
    "Language",
    "compare_generation",
    "language_of",
    "perplexity",
    "perplexity_metric",
]

VOCABULARY = 1000
"""An output of rank 3 whose last axis is at least so long is taken for logits."""

GREEDY_STEPS = 24
FEEDS = 6


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


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Along the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def perplexity(
    run: Callable[[Feed], Mapping[str, Any]], feeds: Sequence[Feed], tokens: str, logits: str
) -> float:
    """Exp of the mean negative log-likelihood of each next token, in nats."""
    loss, count = 0.0, 0
    for feed in feeds:
        ids = np.asarray(feed[tokens], np.int64)
        known = log_softmax(run(feed)[logits][:, :-1])
        loss -= float(np.take_along_axis(known, ids[:, 1:, None], -1).sum())
        count += ids[:, 1:].size
    return float(np.exp(loss / max(1, count)))


def perplexity_metric(feeds: Sequence[Feed], language: Language) -> Metric:
    """Perplexity on held-back text, for the gate."""
    tokens, logits = language.tokens, language.logits
    return Metric("perplexity", lambda run: perplexity(run, feeds, tokens, logits), True)


@dataclass(frozen=True)
class Decoding:
    """How a compiled model generates, beside float.

    Attributes:
        greedy_steps: tokens generated one by one.
        greedy_agreement: share of them equal to float's before the first difference.
        prefill_tokens: tokens of a prefill.
        prefill_ms: median time of it; float, artifact.
        prefill_tokens_per_s: the same as a rate.
        decode_ms: median time of one token; float, artifact.
        decode_tokens_per_s: the same as a rate.
        decode_speedup: ratio of these.
        cached: the decoding step reads a cache (else it is a sequence of one token).
    """

    greedy_steps: int
    greedy_agreement: float
    prefill_tokens: int
    prefill_ms: tuple[float, float]
    prefill_tokens_per_s: tuple[float, float]
    decode_ms: tuple[float, float]
    decode_tokens_per_s: tuple[float, float]
    decode_speedup: float
    cached: bool


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
) -> Generation:
    """Both models side by side on held-back samples."""
    sessions = [open_session(p, threads=threads) for p in (float_model, artifact)]
    logits = language.logits
    same = positions = predicted = 0
    divergence = 0.0
    loss = [0.0, 0.0]
    for feed in feeds[:FEEDS]:
        known = [log_softmax(s.run(feed, [logits])[logits]) for s in sessions]
        first, second = known
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        positions += first[..., 0].size
        divergence += float((np.exp(first) * (first - second)).sum())
        following = np.asarray(feed[language.tokens], np.int64)[:, 1:]
        predicted += following.size
        for i, rows in enumerate(known):
            loss[i] -= float(np.take_along_axis(rows[:, :-1], following[..., None], -1).sum())
    return Generation(
        (float(np.exp(loss[0] / max(1, predicted))), float(np.exp(loss[1] / max(1, predicted)))),
        positions,
        same / positions,
        divergence / positions,
        _decoding(sessions, specs, feeds[0], language, rollout),
    )


def _decoding(
    sessions: Sequence[Session],
    specs: tuple[InputSpec, ...],
    feed: Feed,
    language: Language,
    rollout: Rollout | None,
) -> Decoding | None:
    rows = np.asarray(feed[language.tokens], np.int64)
    if language.fixed or len(rows) != 1:
        return None
    prompt = rows[0]
    half = prompt[: max(1, len(prompt) // 2)]
    state = rollout.state if rollout is not None and rollout.decoder else {}
    wanted, found = (_greedy(s, specs, half, language.logits, feed, state) for s in sessions)
    equal = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b), None)
    prefill = _times(sessions, feed)
    decode = _times(sessions, _step_feed(sessions[0], specs, prompt, feed, state))
    return Decoding(
        len(wanted),
        1.0 if equal is None else equal / len(wanted),
        len(prompt),
        prefill,
        (1e3 * len(prompt) / prefill[0], 1e3 * len(prompt) / prefill[1]),
        decode,
        (1e3 / decode[0], 1e3 / decode[1]),
        decode[0] / decode[1],
        bool(state),
    )


def _greedy(
    session: Session,
    specs: tuple[InputSpec, ...],
    prompt: npt.NDArray[np.int64],
    logits: str,
    base: Feed,
    state: Mapping[str, str],
) -> list[int]:
    """The most likely tokens, one after another; without a cache all is read anew at each step."""
    ids = [int(i) for i in prompt]
    past: dict[str, Any] = {}
    for step in range(GREEDY_STEPS):
        taken = ids[-1:] if state and step else ids
        outputs = session.run(token_feed(specs, np.array(taken, np.int64), past, base))
        past = {into: outputs[out] for out, into in state.items()}
        ids.append(int(outputs[logits][0, -1].argmax()))
    return ids[len(prompt) :]


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


def _times(sessions: Sequence[Session], feed: Feed) -> tuple[float, float]:
    """Median milliseconds of both, interleaved; at least 5 runs, about a second in all."""
    runs: list[list[float]] = [[], []]
    begin = time.perf_counter()
    for session in sessions:
        session.run(feed)
    while len(runs[0]) < 5 or (time.perf_counter() - begin < 2.0 and len(runs[0]) < 50):
        for times, session in zip(runs, sessions, strict=True):
            start = time.perf_counter()
            session.run(feed)
            times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(runs[0])), float(np.median(runs[1]))
