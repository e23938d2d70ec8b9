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
from qcompile.data.text import is_cache, token_feed, token_input
from qcompile.scores import Metric

__all__ = ["Generation", "compare_generation", "logits_output", "perplexity", "perplexity_metric"]

Logits = npt.NDArray[np.float32]

VOCABULARY = 1000
"""An output of rank 3 whose last axis is at least so long is taken for logits."""

GREEDY_STEPS = 24
FEEDS = 6


def logits_output(session: Session, specs: tuple[InputSpec, ...]) -> str | None:
    """The output that holds the next token's logits, None when this is no language model."""
    if token_input(specs) is None:
        return None
    for port in session.outputs:
        last = port.shape[-1] if port.shape else None
        wide = isinstance(last, int) and last >= VOCABULARY
        if len(port.shape) == 3 and port.dtype == np.float32 and (wide or "logits" in port.name):
            return port.name
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


def perplexity_metric(feeds: Sequence[Feed], tokens: str, logits: str) -> Metric:
    """Perplexity on held-back text, for the gate."""
    return Metric("perplexity", lambda run: perplexity(run, feeds, tokens, logits), True)


@dataclass(frozen=True)
class Generation:
    """How a compiled model generates, beside float.

    Attributes:
        positions: next-token predictions compared.
        agreement: share of them with the same most likely token.
        kl: mean Kullback-Leibler divergence from float's distribution, in nats.
        greedy_steps: tokens generated one by one.
        greedy_agreement: share of them equal to float's before the first difference.
        prefill_tokens: tokens of a prefill.
        prefill_ms: median time of it; float, artifact.
        decode_ms: median time of one token; float, artifact.
        decode_speedup: ratio of these.
        cached: the decoding step reads a cache (else it is a sequence of one token).
    """

    positions: int
    agreement: float
    kl: float
    greedy_steps: int
    greedy_agreement: float
    prefill_tokens: int
    prefill_ms: tuple[float, float]
    decode_ms: tuple[float, float]
    decode_speedup: float
    cached: bool


def compare_generation(
    float_model: Path,
    artifact: Path,
    specs: tuple[InputSpec, ...],
    feeds: Sequence[Feed],
    *,
    threads: int | None = None,
) -> Generation | None:
    """Both models side by side on held-back samples; None when they are no language models."""
    sessions = [open_session(p, threads=threads) for p in (float_model, artifact)]
    logits, tokens = logits_output(sessions[0], specs), token_input(specs)
    if logits is None or tokens is None:
        return None
    same = positions = 0
    divergence = 0.0
    for feed in feeds[:FEEDS]:
        first, second = (log_softmax(s.run(feed, [logits])[logits]) for s in sessions)
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        positions += first[..., 0].size
        divergence += float((np.exp(first) * (first - second)).sum())
    prompt = np.asarray(feeds[0][tokens.name], np.int64)[0]
    if isinstance((tokens.shape or (None, None))[1], int) or len(feeds[0][tokens.name]) != 1:
        return None  # of a fixed length or many rows: it cannot generate one token after another
    half = prompt[: max(1, len(prompt) // 2)]
    wanted, found = (_greedy(s, specs, half, logits, feeds[0]) for s in sessions)
    equal = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b), None)
    prefill = _times(sessions, feeds[0])
    cached = any(is_cache(s) for s in specs)
    step = _step_feed(sessions[0], specs, prompt, feeds[0])
    decode = _times(sessions, step)
    return Generation(
        positions,
        same / positions,
        divergence / positions,
        len(wanted),
        1.0 if equal is None else equal / len(wanted),
        len(prompt),
        prefill,
        decode,
        decode[0] / decode[1],
        cached,
    )


def _greedy(
    session: Session,
    specs: tuple[InputSpec, ...],
    prompt: npt.NDArray[np.int64],
    logits: str,
    base: Feed,
) -> list[int]:
    """The most likely tokens, one after another; the whole sequence is read anew at each step."""
    ids = list(prompt)
    for _ in range(GREEDY_STEPS):
        feed = token_feed(specs, np.array(ids, np.int64), others=base)
        found = session.run(feed, [logits])[logits]
        ids.append(int(found[0, -1].argmax()))
    return [int(i) for i in ids[len(prompt) :]]


def _step_feed(
    session: Session,
    specs: tuple[InputSpec, ...],
    prompt: npt.NDArray[np.int64],
    base: Feed,
) -> Feed:
    """One token, behind the cache that the prompt leaves where the model has one."""
    caches = [s.name for s in specs if is_cache(s)]
    if not caches:
        return token_feed(specs, prompt[:1], others=base)
    outputs = session.run(token_feed(specs, prompt, others=base))
    past = {}
    made = [k for k in outputs if "present" in k.lower() or "cache" in k.lower()]
    for name, out in zip(caches, made, strict=False):
        past[name] = outputs[out]
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
