"""What an interrupted compile had finished, kept beside its output until the artifact is written.

A folder ``.OUTPUT.progress`` holds each expensive stage's result as a file of its own, written under
another name and renamed, so that it is whole or not there. The same compile goes on from there; another
one throws it away. Time limits and limits of the gate are not part of what makes a compile "the same":
no kept stage depends on them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qcompile.calibration import Calibration
from qcompile.checkpoint import claim
from qcompile.even_out import Evened, apply_factors
from qcompile.ir.errors import QCompileError
from qcompile.ir.manager import PassRecord
from qcompile.ir.notes import Note
from qcompile.job import Job
from qcompile.learned_file import LEARNED, read_learned, write_learned
from qcompile.learning import Learned
from qcompile.planner.costs import Costs
from qcompile.ranges import Ranges
from qcompile.reporter import Reporter

__all__ = ["Unfinished"]

BEFORE, AFTER = "ranges.npz", "ranges-even.npz"

_FREE = frozenset(
    {"gate_time", "search_time", "max_drop", "min_sqnr", "min_speedup", "max_latency", "max_size"}
    | {"metric", "metric_direction", "labels", "slices", "require", "strict", "allow_random"}
    | {"best_effort", "steps", "show"}
)
"""Options that no kept stage depends on."""

T = TypeVar("T")


@dataclass
class Unfinished:
    """The finished stages of one compile; as a context it ends with the compile.

    Attributes:
        folder: None keeps nothing.
        reporter: told what need not be done again.
    """

    folder: Path | None
    reporter: Reporter

    @classmethod
    def begin(cls, folder: Path | None, key: Mapping[str, Any], reporter: Reporter) -> Unfinished:
        """What the same compile finished before; an empty folder where it is another."""
        if folder is not None:
            kept = {k: v for k, v in key.items() if k.removeprefix("option.") not in _FREE}
            claim(folder, kept)
        return cls(folder, reporter)

    def __enter__(self) -> Unfinished:
        """The compile begins."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """An interruption keeps what there is and says so; an error that would come again does not."""
        if self.folder is None:
            return
        if isinstance(error, KeyboardInterrupt):
            error.kept = (self.folder, self.stages())  # type: ignore[attr-defined]
        if error is None or isinstance(error, QCompileError):
            shutil.rmtree(self.folder, ignore_errors=True)

    def stages(self) -> list[str]:
        """What is kept, in the order in which it was made."""
        if self.folder is None:
            return []
        files = {"calibrate": BEFORE, "even out": "even.json", "learn": LEARNED}
        files["costs"] = "costs.json"
        return [stage for stage, name in files.items() if (self.folder / name).is_file()]

    def ranges(self, make: Callable[[], Ranges]) -> Ranges:
        """The stage "calibrate"."""
        about = self._read("ranges.json", "calibrate")
        if about is not None and self.folder is not None:
            known = Calibration.load(self.folder / BEFORE)
            return Ranges(known.ranges(), known, about["description"], tuple(about["findings"]))
        found = make()
        if self.folder is not None and found.calibration is not None:
            found.save(self.folder / BEFORE)
            self._write(
                "ranges.json", {"description": found.description, "findings": list(found.findings)}
            )
        return found

    def evened(self, job: Job, ranges: Ranges, make: Callable[[], Evened]) -> Evened:
        """The stage "even out", of which factors, records and the new statistics are kept."""
        about = self._read("even.json", "even out")
        if about is not None and self.folder is not None:
            records = tuple(_record(row) for row in about["records"])
            if about["factors"]:
                job = apply_factors(job, {n: tuple(k) for n, k in about["factors"].items()})
                new = Calibration.load(self.folder / AFTER)
                ranges = replace(
                    ranges, chosen=new.ranges(), calibration=new, observed=ranges.calibration
                )
            return replace(job, prepared=replace(job.prepared, records=records)), ranges
        scaled, after = make()
        if self.folder is not None and ranges.calibration is not None and job.base is None:
            if after.calibration is not None and scaled.prepared.factors:
                after.calibration.save(self.folder / AFTER)
            rows = [_row(record) for record in scaled.prepared.records]
            self._write("even.json", {"factors": dict(scaled.prepared.factors), "records": rows})
        return scaled, after

    def learned(self, job: Job, make: Callable[[], Learned]) -> Learned:
        """The stage "learn"."""
        model = job.prepared.model
        about = self._read("learned.json", "learn")
        if about is not None and self.folder is not None:
            notes = tuple(Note(*row) for row in about["notes"])
            return replace(read_learned(self.folder / LEARNED, model), notes=notes)
        found = make()
        if self.folder is not None:
            write_learned(self.folder / LEARNED, found, model)
            self._write("learned.json", {"notes": [_note(n) for n in found.notes]})
        return found

    def costs(self, make: Callable[[], Costs]) -> Costs:
        """Measured costs, within the stage "plan"."""
        path = None if self.folder is None else self.folder / "costs.json"
        if path is not None and path.is_file():
            self.reporter.note("costs: taken from the interrupted compile")
            return Costs.from_json(path.read_text(encoding="utf-8"))
        found = make()
        if self.folder is not None:
            self._write_text("costs.json", found.to_json())
        return found

    def _read(self, name: str, stage: str) -> dict[str, Any] | None:
        if self.folder is None or not (self.folder / name).is_file():
            return None
        self.reporter.note(f"{stage}: taken from the interrupted compile")
        found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        """The last file of a stage: with it the stage counts."""
        self._write_text(name, json.dumps(content, sort_keys=True))

    def _write_text(self, name: str, text: str) -> None:
        if self.folder is not None:
            draft = self.folder / f"{name}.draft"
            draft.write_text(text, encoding="utf-8", newline="\n")
            draft.replace(self.folder / name)


def _note(note: Note) -> list[Any]:
    return [note.where, note.text, note.changed]


def _row(record: PassRecord) -> dict[str, Any]:
    notes = [_note(n) for n in record.notes]
    return {
        "name": record.name,
        "changed": record.changed,
        "seconds": record.seconds,
        "notes": notes,
    }


def _record(row: Mapping[str, Any]) -> PassRecord:
    notes = tuple(Note(*n) for n in row["notes"])
    return PassRecord(row["name"], row["changed"], row["seconds"], notes)
