"""Candidates side by side: built, run on selection samples, timed interleaved in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompile.backends.ort import AS_WRITTEN, open_session
from qcompile.build import Build, Builder
from qcompile.compare import OutputComparison, compare_outputs
from qcompile.data.inputs import Feed
from qcompile.enough import Enough
from qcompile.ir.errors import ModelError
from qcompile.ir.plan import PrecisionPlan
from qcompile.job import Job
from qcompile.measure import measure_many
from qcompile.needed import Needed
from qcompile.planner.clock import idle_ns, typical_feed
from qcompile.selected import NONE_SELECTED, Selected

__all__ = ["FLOAT_NAME", "Candidate", "Race", "open_race"]

FLOAT_NAME = "float"
CLOSE = Enough(half_width=0.03, loose=0.06, margin=3.0, least=4)
"""How closely candidates are told apart; the gate, which reports what it finds, asks for more."""


@dataclass(frozen=True)
class Candidate:
    """One plan that was built and judged on selection samples.

    Attributes:
        name: how it came about.
        build: its models.
        ms: median latency, None when not timed.
        speedup: against the user's float model.
        sqnr_db: least SQNR over float outputs on selection samples; None without float outputs.
        channels_db: least SQNR over kinds of channels (`channel_groups`); None where no output
            holds several.
        channels: which these are.
        blended_db: what plans are compared by: ``sqnr_db``, or of an output with kinds of channels
            their mean noise.
        refused: why it cannot be delivered, "" when nothing speaks against it.
        chosen: it is the one that was taken.
    """

    name: str
    build: Build
    ms: float | None = None
    speedup: float | None = None
    sqnr_db: float | None = None
    channels_db: float | None = None
    channels: str = ""
    blended_db: float | None = None
    refused: str = ""
    chosen: bool = False

    @property
    def judged_db(self) -> float | None:
        """What plans are compared by."""
        return self.sqnr_db if self.blended_db is None else self.blended_db

    def reached_db(self, needed: Needed) -> float | None:
        """The limit with this leeway for kinds of channels that the outputs just keep."""
        return needed.reached_db(self.sqnr_db, self.channels_db)

    def text(self) -> str:
        """One line for people."""
        parts = [self.name]
        if self.speedup is not None:
            parts.append(f"{self.speedup:.2f}x")
        if self.sqnr_db is not None:
            kind = f" ({self.channels_db:.1f} dB in {self.channels})" if self.channels else ""
            parts.append(f"{self.sqnr_db:.1f} dB{kind}")
        if self.refused:
            parts.append(self.refused)
        return ("-> " if self.chosen else "   ") + ", ".join(parts)

    def worth(self) -> float:
        """Speed-up times the share of the output's amplitude that is not noise.

        The default knee: at 10 dB a third of the amplitude is noise, at 20 dB a tenth, at 30 dB 3 %,
        so that a little speed is given for accuracy while accuracy is poor, and none later on.
        """
        noise = 0.0 if self.judged_db is None else min(1.0, 10.0 ** (-self.judged_db / 20.0))
        return (self.speedup or 0.0) * (1.0 - noise)


@dataclass
class Race:
    """Judges candidates of one model, each once.

    Attributes:
        builder: builds plans.
        float_path: the user's model, which candidates are timed beside.
        feeds: selection samples.
        threads: as deployed.
        custom_ops: library with custom operators.
        seconds_each: time for timing one candidate.
        reference: a model with Q/DQ whose outputs, as it is written, candidates must equal; None
            where that is ``float_path``.
        expected: its outputs for each of the feeds; run when not given, so that ``replace`` with
            another builder does not run the model again.
        clock: model file -> nanoseconds, of all that was timed.
        spins: idle threads spin while candidates are timed, until that was seen to leave them vague.
        selected: outputs that are not compared.
    """

    builder: Builder
    float_path: Path
    feeds: Sequence[Feed]
    threads: int | None
    custom_ops: Path | None
    seconds_each: float = 1.5
    reference: Path | None = None
    expected: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    clock: dict[Path, float] = field(default_factory=dict, repr=False)
    spins: bool = True
    selected: Selected = NONE_SELECTED

    def __post_init__(self) -> None:
        """Run the float model once."""
        if self.expected is not None:
            return
        session = open_session(
            self.reference or self.float_path,
            threads=self.threads,
            custom_ops=self.custom_ops,
            config=AS_WRITTEN if self.reference else None,
        )
        self.expected = [self.selected.judged(session.run(feed)) for feed in self.feeds]

    def accuracy(self, name: str, plan: PrecisionPlan) -> Candidate:
        """Build a plan and compare its outputs with float's."""
        build = self.builder.build(plan)
        expected = self.expected or ()
        try:
            session = open_session(
                build.path,
                threads=self.threads,
                custom_ops=self.custom_ops,
                config=self.builder.config,
            )
            compared: dict[str, OutputComparison] = {}
            for i, (feed, ref) in enumerate(zip(self.feeds, expected, strict=True)):
                compare_outputs(compared, str(i), None, ref, session.run(feed))
        except ModelError as e:
            return Candidate(name, build, refused=f"ONNX Runtime refuses it: {e}")
        results = [c.result() for c in compared.values()]
        broken = next((r.name for r in results if r.nonfinite), None)
        refused = f"output '{broken}' holds NaN or infinity" if broken else ""
        found = Candidate(name, build, refused=refused)
        floats = [r for r in results if r.sqnr_db is not None and not r.zero]
        if floats:
            whole = min(r.sqnr_db for r in floats if r.sqnr_db is not None)
            blended = min(r.blended_db for r in floats if r.blended_db is not None)
            found = replace(found, sqnr_db=whole, blended_db=blended)
        split = [(r.name, r.worst_group) for r in floats]
        groups = [(group, name) for name, group in split if group is not None]
        if groups:
            group, output = min(groups, key=lambda one: one[0].sqnr_db)
            where = group.text if len(floats) == 1 else f"{group.text} of {output}"
            found = replace(found, channels_db=group.sqnr_db, channels=where)
        return found

    def time(
        self,
        candidates: Sequence[Candidate],
        beside: Sequence[Path] = (),
        progress: Callable[[float], None] | None = None,
        *,
        by_worth: bool = True,
        to_beat: float = 0.0,
    ) -> list[Candidate]:
        """The candidates with their latencies; those that cannot run are left as they are.

        Where shapes differ they are timed at the typical one, as costs are.

        Args:
            candidates: what to time.
            beside: models to time with them, for ``clock`` alone.
            progress: told the share of the time that is over.
            by_worth: the one of most worth is wanted, so that what is worth clearly less needs no
                close figures.
            to_beat: worth of the best that is known.
        """
        able = {f"c{i}": c for i, c in enumerate(candidates) if not c.refused}
        if not able:
            return list(candidates)
        paths: dict[str, Path] = {FLOAT_NAME: self.float_path}
        paths |= {key: c.build.path for key, c in able.items()}
        there = set(paths.values())
        paths |= {f"b{i}": p for i, p in enumerate(dict.fromkeys(beside)) if p not in there}
        found = measure_many(
            paths,
            [typical_feed(self.feeds)],
            threads=self.threads,
            budget_s=self.seconds_each * len(paths),
            enough=replace(
                CLOSE,
                worth={key: replace(c, speedup=1.0).worth() for key, c in able.items()},
                to_beat=to_beat,
                beside=[key for key in paths if key not in able],
            )
            if by_worth
            else replace(CLOSE, loose=None),
            spinning=None if self.spins else False,
            custom_ops=self.custom_ops,
            progress=progress,
        )
        self.spins = found.spinning
        self.clock = {**idle_ns(found, paths), **self.clock}
        timed: Mapping[str, Candidate] = {
            key: replace(c, ms=found.models[key].p50_ms, speedup=found.speedup(key).value)
            for key, c in able.items()
        }
        return [timed.get(f"c{i}", c) for i, c in enumerate(candidates)]


def open_race(job: Job, builder: Builder, seconds_each: float = 1.5) -> Race:
    """A race of the job's candidates on its selection samples."""
    return Race(
        builder,
        job.float_path,
        job.data.selection(),
        job.options.threads,
        job.options.custom_ops,
        seconds_each,
        job.reference,
        selected=job.prepared.selected,
    )
