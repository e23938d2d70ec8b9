"""State that a model gives out and takes in again: pairing outputs with inputs, and running N steps.

A recurrent or streaming model is called again and again with the state that it returned. Small errors
accumulate there, so one call says little: float model and artifact each run N steps on their own states.
The cache of a decoder grows with every call, and mask and positions with it: a sample's first tokens are
read at once, the others one by one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qcompile.backends.ort import Port, Session
from qcompile.compare import OutputComparison, OutputResult, compare_outputs
from qcompile.data.inputs import InputSpec, is_cache
from qcompile.data.text import token_feed, token_input
from qcompile.ir.errors import ModelError, OptionError

__all__ = ["STEPS", "Rollout", "StepResult", "carrying", "find_rollout", "roll"]

Feed = Mapping[str, Any]

STEPS = 16
"""Steps where none were asked for."""

SEQUENCES = 4
"""Sequences that are rolled, each from another sample on."""

SECONDS = 20.0
"""No further sequence is begun after so long."""

_SIDES = frozenset(
    {"in", "input", "init", "initial", "prev", "previous", "past", "last", "old", "present", "cur"}
    | {"out", "output", "new", "next", "n", "t", "final"}
)
"""Words by which the two ends of a state differ."""

_SHORT = {"hn": "h", "h0": "h", "ht": "h", "cn": "c", "c0": "c", "ct": "c"}


@dataclass(frozen=True)
class Rollout:
    """How state is carried over.

    Attributes:
        state: output name -> the input that it is fed back into.
        steps: how many calls follow one another.
        asked: named by the user; what cannot be rolled is then an error.
        decoder: inputs of a language model whose state is a cache that grows; () for all others.
    """

    state: Mapping[str, str]
    steps: int = STEPS
    asked: bool = False
    decoder: tuple[InputSpec, ...] = ()

    def text(self) -> str:
        """For people: ``hn -> h, cn -> c``."""
        if self.decoder:
            return f"a cache of {len(self.state)} tensors that grows"
        return ", ".join(f"{out} -> {into}" for out, into in self.state.items())

    def of_decoder(self, specs: tuple[InputSpec, ...]) -> Rollout:
        """The same where the state is all of a language model's keys and values."""
        caches = {spec.name for spec in specs if is_cache(spec)}
        if token_input(specs) is None or set(self.state.values()) != caches:
            return self
        return replace(self, decoder=specs)

    def feed(self, step: int, sample: Feed, state: Mapping[str, Any]) -> Feed:
        """What a call is given: a sample with the state, or the next token behind the cache."""
        tokens = token_input(self.decoder) if self.decoder else None
        if tokens is None:
            return {**sample, **state}
        ids = np.asarray(sample[tokens.name], np.int64)[0]
        first = max(1, len(ids) - self.steps + 1)
        taken = ids[:first] if step == 0 else ids[[(first + step - 1) % len(ids)]]
        return token_feed(self.decoder, taken, dict(state), dict(sample))


@dataclass(frozen=True)
class StepResult:
    """One output at one step, over all sequences.

    Attributes:
        step: counted from 1.
        output: its name.
        state: whether it is fed back in.
        sqnr_db: against the float model that carried its own state.
        channels_db: of the worst kind of channels, where the output holds several.
    """

    step: int
    output: str
    state: bool
    sqnr_db: float | None
    channels_db: float | None = None


@dataclass(frozen=True)
class Rolled:
    """What N steps showed.

    Attributes:
        steps: first, middle and last step of each float output.
        notes: why it was not rolled, or not as far.
    """

    steps: tuple[StepResult, ...] = ()
    notes: tuple[str, ...] = field(default=())


def find_rollout(
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    asked: Sequence[str] = (),
    steps: int | None = None,
) -> Rollout | None:
    """How state is carried over: as asked ("out=in", or "none"), else as names and shapes suggest.

    An output and an input are paired by themselves where types and shapes agree and the names are the
    same but for words like "in", "out", "past" and "next", one to one, and where at least one input
    and one output remain that are no state.

    Raises:
        OptionError: a pair names an output or input that is not there, or whose types differ.
    """
    wanted = [pair for text in asked for pair in text.split(",") if pair.strip()]
    if wanted == ["none"]:
        return None
    count = STEPS if steps is None else steps
    if wanted:
        return Rollout(dict(_asked(pair, inputs, outputs) for pair in wanted), count, asked=True)
    found: dict[str, str] = {}
    for output in outputs:
        near = [port for port in inputs if _core(port.name) == _core(output.name)]
        if len(near) == 1 and _fits(output, near[0]):
            found[output.name] = near[0].name
    doubled = len(set(found.values())) < len(found)
    if not found or doubled or len(found) in (len(inputs), len(outputs)):
        return None
    return Rollout(found, count)


def _asked(pair: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> tuple[str, str]:
    out, sign, into = (part.strip() for part in pair.partition("="))
    if not sign:
        raise OptionError(f"--state '{pair}': write OUTPUT=INPUT, or 'none'")
    ends = {}
    for name, ports, kind in ((out, outputs, "output"), (into, inputs, "input")):
        port = next((p for p in ports if p.name == name), None)
        if port is None:
            raise OptionError(
                f"--state '{pair}': the model has no {kind} '{name}'; it has "
                f"{', '.join(p.name for p in ports)}"
            )
        ends[kind] = port
    if not _fits(ends["output"], ends["input"]):
        raise OptionError(
            f"--state '{pair}': output '{out}' is {ends['output'].type} {list(ends['output'].shape)}, "
            f"input '{into}' {ends['input'].type} {list(ends['input'].shape)}; they must agree"
        )
    return out, into


def _fits(output: Port, into: Port) -> bool:
    if output.type != into.type or len(output.shape) != len(into.shape):
        return False
    pairs = zip(output.shape, into.shape, strict=True)
    return all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _core(name: str) -> tuple[str, ...]:
    """What a name is about: ``past_key_values.0.key`` and ``present.0.key`` are both (0, key)."""
    text = re.sub(r"past_key_values?|present_key_values?|present", " ", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    words = [w for w in re.split(r"[^a-z0-9]+", text.lower()) if w]
    kept = tuple(_SHORT.get(w, w) for w in words if w not in _SIDES)
    return kept or tuple(words)


def roll(
    float_session: Session, artifact: Session, feeds: Sequence[Feed], rollout: Rollout
) -> Rolled:
    """Run both over ``rollout.steps`` calls, from several samples on, each with its own state.

    A sequence starts with a sample's state; the other inputs are those of the samples in turn.

    Raises:
        OptionError: the user named the state, and float cannot be rolled with it.
        ModelError: the artifact fails at a step that float can run.
    """
    compared: list[dict[str, OutputComparison]] = [{} for _ in range(rollout.steps)]
    starts = sorted({i * len(feeds) // SEQUENCES for i in range(SEQUENCES)})
    began = time.perf_counter()
    run_float, run_artifact = carrying(float_session, rollout), carrying(artifact, rollout)
    for number, start in enumerate(starts):
        if number and time.perf_counter() - began > SECONDS:
            break
        for step, results in enumerate(compared):
            feed = feeds[start if rollout.decoder else (start + step) % len(feeds)]
            try:
                ref = run_float(step, feed)
            except ModelError as e:
                why = f"state ({rollout.text()}) cannot be rolled back in at step {step + 1}: {e}"
                if rollout.asked:
                    raise OptionError(f"--state: {why}") from e
                return Rolled((), (f"judged on single calls alone, since {why}",))
            compare_outputs(results, str(number), None, ref, run_artifact(step, feed))
    rows = []
    for step in sorted({1, -(-rollout.steps // 2), rollout.steps}):
        found = {name: c.result() for name, c in compared[step - 1].items()}
        rows += [_row(step, one, rollout) for one in found.values() if one.kind == "float"]
    note = f"state is carried over ({rollout.text()}): judged over {rollout.steps} steps too"
    return Rolled(tuple(rows), (note if rollout.asked else f"{note}; --state none does not",))


def _row(step: int, one: OutputResult, rollout: Rollout) -> StepResult:
    whole, kind = (None, None) if one.zero else (one.sqnr_db, one.channels_db)
    return StepResult(step, one.name, one.name in rollout.state, whole, kind)


def carrying(session: Session, rollout: Rollout) -> Callable[[int, Feed], dict[str, Any]]:
    """Runs step after step; step 0 starts with the sample's own state."""
    state: dict[str, Any] = {}

    def run(step: int, feed: Feed) -> dict[str, Any]:
        if step == 0:
            state.clear()
        outputs = session.run(rollout.feed(step, feed, state))
        state.update({into: outputs[out] for out, into in rollout.state.items()})
        return outputs

    return run
