"""How far two models generate the same: the most likely token, one after another, until they differ.

Behind a cache each step reads one token. Without one every step reads all before it anew, so several are
tried at once: in a causal model the logits of a guess that turns out right are those that a step by itself
would give. The text's own tokens are the first guess, then what float says of those behind the first wrong
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.backends.ort import Session
from qcompile.data.inputs import Feed, InputSpec
from qcompile.data.text import token_feed

__all__ = ["is_causal", "same_prefix"]

Ids = npt.NDArray[np.int64]

SAME = 1e-3
"""Of the logits' standard deviation: what a longer sequence may change in those before it by rounding."""


def same_prefix(
    sessions: Sequence[Session],
    specs: tuple[InputSpec, ...],
    ids: Ids,
    logits: str,
    base: Feed,
    state: Mapping[str, str],
    steps: int,
    *,
    guess: bool,
) -> int:
    """Tokens, at most ``steps``, that both models generate alike behind the first half of a sample.

    Args:
        sessions: float, artifact.
        specs: the float model's inputs.
        ids: tokens of the sample.
        logits: output that holds the next token's logits.
        base: the sample, for inputs that are not tokens.
        state: of the cache, output -> input; {} without one.
        steps: most tokens.
        guess: try several steps at once; for causal models without a cache.
    """
    half = max(1, len(ids) // 2)
    prompt = [int(i) for i in ids[:half]]
    if state:
        return _behind_caches(sessions, specs, prompt, logits, base, state, steps)
    same: list[int] = []
    draft = [int(i) for i in ids[half : half + steps - 1]] if guess else []
    while True:
        taken = np.array(prompt + same + draft, np.int64)
        behind = len(draft) + 1
        wanted, found = (
            _best(s, token_feed(specs, taken, others=base), logits, behind) for s in sessions
        )
        for at, (token, other) in enumerate(zip(wanted, found, strict=True)):
            if token != other:
                return len(same)
            same.append(token)
            if len(same) == steps:
                return steps
            if at < len(draft) and draft[at] != token:
                draft = wanted[at + 1 :]
                break
        else:
            draft = []
        draft = draft[: steps - 1 - len(same)] if guess else []


def _best(session: Session, feed: Feed, logits: str, behind: int) -> list[int]:
    """The most likely token behind each of the last tokens."""
    found = session.run(feed, [logits])[logits]
    return [int(i) for i in found[0, -behind:].argmax(-1)]


def _behind_caches(
    sessions: Sequence[Session],
    specs: tuple[InputSpec, ...],
    prompt: Sequence[int],
    logits: str,
    base: Feed,
    state: Mapping[str, str],
    steps: int,
) -> int:
    taken = [int(i) for i in prompt]
    pasts: list[dict[str, Any]] = [{} for _ in sessions]
    for step in range(steps):
        tokens = []
        for i, session in enumerate(sessions):
            feed = token_feed(specs, np.array(taken, np.int64), pasts[i], base)
            outputs = session.run(feed)
            pasts[i] = {into: outputs[out] for out, into in state.items()}
            tokens.append(int(outputs[logits][0, -1].argmax()))
        if tokens[0] != tokens[1]:
            return step
        taken = tokens[:1]
    return steps


def is_causal(
    session: Session, specs: tuple[InputSpec, ...], ids: Ids, logits: str, base: Feed
) -> bool:
    """Whether the logits of a sequence's first half do not depend on the second."""
    half = max(1, len(ids) // 2)
    part, whole = (
        session.run(token_feed(specs, taken, others=base), [logits])[logits][0, :half]
        for taken in (ids[:half], ids)
    )
    return bool(np.abs(part - whole).max() <= SAME * max(float(whole.std()), 1e-30))
