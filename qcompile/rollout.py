"""State that a model carries from sample to sample, for the gate to carry it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.backends.ort import Session

__all__ = ["Rollout", "stepper"]

Feed = Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """State carried over from step to step (recurrent, streaming models): errors accumulate.

    Attributes:
        state: output name -> the input that it is fed back into.
        sequences: for each sample the sequence it belongs to; where that changes, the sample's own
            state starts it. Empty: all samples are one sequence.
    """

    state: Mapping[str, str]
    sequences: Sequence[str] = ()


def stepper(session: Session, rollout: Rollout | None) -> Callable[[int, Feed], dict[str, Any]]:
    """Runs sample after sample, with the state rolled back in where there is one."""
    state: dict[str, Any] = {}
    last: list[str | None] = [None]

    def step(index: int, feed: Feed) -> dict[str, Any]:
        if rollout is None:
            return session.run(feed)
        sequence = rollout.sequences[index] if rollout.sequences else ""
        if sequence != last[0]:
            state.clear()
            last[0] = sequence
        outputs = session.run({**feed, **state})
        state.update({into: outputs[out] for out, into in rollout.state.items()})
        return outputs

    return step
