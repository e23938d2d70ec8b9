"""One compile's givens: the prepared model, the data split for calibration and gate, the limits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qcompile.backends.ort import AS_WRITTEN, Session, open_session
from qcompile.backends.trt import Profile
from qcompile.data.inputs import Feed, InputSpec, random_feeds
from qcompile.data.plausible import doubts
from qcompile.data.sources import FeedSet, open_feeds
from qcompile.data.subset import diverse_indices, every_fourth, hold_back
from qcompile.data.text import text_recipe
from qcompile.gate import Limits
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import OptionError
from qcompile.ir.manager import CompileState
from qcompile.ir.plan import FLOAT, PrecisionPlan
from qcompile.ir.save import save_model
from qcompile.lock import Lock
from qcompile.memory import Room
from qcompile.opened import OpenedModel
from qcompile.options import Options
from qcompile.planner.default import default_plan
from qcompile.prepare import Prepared
from qcompile.profiles import asked_shapes, shape_profile
from qcompile.remembered import RememberedSession
from qcompile.report_data.show import parse_show
from qcompile.retrain import Base
from qcompile.rollout import Rollout
from qcompile.scores import Metric, make_metric
from qcompile.segmented import SegmentedSession
from qcompile.sizes import LOADED_WHOLE, model_bytes

__all__ = ["Data", "Job", "doubted", "gather", "start_plan"]

PLAUSIBLE = 4
"""Samples that are looked at for whether they resemble what the input expects."""

UNPACKED = {"session.disable_prepacking": "1"}
"""Products of 128 rows take a sixth longer, and memory falls by the size of the weights."""

SELECTION = 8
"""Samples of the calibration data on which plans are compared with one another."""


@dataclass(frozen=True)
class Data:
    """Samples by use; the gate's are never calibrated on (when there are at least four).

    Attributes:
        calibration: for ranges and the search of a plan.
        held: for the gate.
        metric: the user's score, None without one.
        sha256: of all samples used.
        findings: what people should know about the data.
        shapes: what ``--shapes`` asks, by input name: least, typical, largest.
    """

    calibration: FeedSet
    held: FeedSet
    metric: Metric | None
    sha256: str
    findings: tuple[str, ...]
    shapes: Profile = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether the samples are made up."""
        return self.calibration.random

    def selection(self) -> list[Feed]:
        """Samples on which plans are compared, spread over the calibration data."""
        total = len(self.calibration)
        picked = np.unique(np.linspace(0, total - 1, min(SELECTION, total)).astype(int))
        return [self.calibration.load(int(i)) for i in picked]

    def teaching(self, most: int) -> tuple[list[Feed], frozenset[int]]:
        """Samples to learn from, and the indices of those among them that judge what was learned.

        The judges are those on which plans are compared, so that the comparison is honest; with few
        samples every fourth judges instead.
        """
        total = len(self.calibration)
        spread = np.linspace(0, total - 1, min(most, total)).astype(int).tolist()
        picked = np.linspace(0, total - 1, min(SELECTION, total)).astype(int).tolist()
        order = sorted({*spread, *picked})
        feeds = [self.calibration.load(i) for i in order]
        if len(order) >= 2 * len(picked):
            return feeds, frozenset(order.index(i) for i in picked)
        return feeds, every_fourth(len(order))

    def extremes(self) -> list[Feed]:
        """Further shapes that must run: the smallest and the largest, where shapes differ.

        Those of the calibration samples, and those that ``--shapes`` asks for.
        """
        asked = [
            {**self.calibration.load(0), **made}
            for made in (self._made(0), self._made(2))
            if any(low != high for low, _, high in self.shapes.values())
        ]
        sizes = [sum(a.size for a in feed.values()) for feed in self.calibration]
        low, high = int(np.argmin(sizes)), int(np.argmax(sizes))
        if sizes[low] == sizes[high]:
            return asked
        return [*(self.calibration.load(i) for i in (low, high)), *asked]

    def profile(self) -> Profile:
        """Least, typical and largest shape of each input: what ``--shapes`` asks, else the samples'."""
        feeds = [*self.calibration, *self.held]
        return {**shape_profile([{k: v.shape for k, v in f.items()} for f in feeds]), **self.shapes}

    def _made(self, index: int) -> Feed:
        """Made-up data of the least (0) or largest (2) shapes asked for."""
        sample = self.calibration.load(0)
        specs = [
            InputSpec(name, sample[name].dtype.name, tuple(found[index]))
            for name, found in self.shapes.items()
        ]
        return random_feeds(tuple(specs), 1)[0]


@dataclass(frozen=True)
class Job:
    """What every stage is given.

    Attributes:
        prepared: the prepared model.
        data: the samples.
        options: what was asked.
        float_path: the model that the artifact must beat: the user's, or what is left of it without
            its Q/DQ.
        work: a temporary folder.
        reference: the user's model where it comes with Q/DQ: what the outputs must equal.
        base: an earlier compile that this one follows, None without --from.
        rollout: how state is carried over from call to call, None for models without.
        room: what the float model needs and may have; None where nobody asked.
        opened: the user's model, if it was opened in a process of its own before anything was known of it.
    """

    prepared: Prepared
    data: Data
    options: Options
    float_path: Path
    work: Path
    reference: Path | None = None
    rollout: Rollout | None = None
    base: Base | None = None
    room: Room | None = None
    opened: OpenedModel | None = None

    def in_parts(self) -> SegmentedSession | None:
        """The float model run part by part, where it does not fit in memory; else None."""
        if self.room is None or self.room.fits:
            return None
        return SegmentedSession(
            self.prepared.loaded.model,
            list(self.data.held),
            self.work / "float",
            self.room.part,
            why=self.room.text(),
            threads=self.options.threads,
            custom_ops=self.options.custom_ops,
        )

    def mapped_float(self) -> Path:
        """The float model with large weights beside it; a copy of ``float_path`` where they are inside.

        Of weights inside a protobuf file the runtime holds two copies; those beside it are mapped.
        """
        path, copy = self.float_path, self.work / "beside" / self.float_path.name
        inside = path.stat().st_size >= LOADED_WHOLE and self.in_parts() is None
        if inside and not copy.is_file():
            copy.parent.mkdir(exist_ok=True)
            save_model(self.prepared.loaded.model, copy, external_above=LOADED_WHOLE)
        return copy if inside else path

    def remembered_reference(self, stands: OpenedModel | None = None) -> RememberedSession:
        """What the outputs must equal, with a memory for the gate's samples; opened, or in ``stands``."""
        folder = self.work / "remembered"
        return RememberedSession(self.open_reference, list(self.data.held), folder, stands=stands)

    def open_reference(self) -> Session:
        """What the outputs must equal, opened; of a large model no weights are packed for the kernels."""
        options = self.options
        parts = self.in_parts()
        if parts is not None:
            return parts
        if self.reference is None:
            path = self.mapped_float()
            large = (model_bytes(path) or 0) >= LOADED_WHOLE
            return open_session(
                path,
                threads=options.threads,
                custom_ops=options.custom_ops,
                config=UNPACKED if large else None,
            )
        return open_session(
            self.reference,
            threads=options.threads,
            custom_ops=options.custom_ops,
            config=AS_WRITTEN,
        )

    def limits(self) -> Limits:
        """The limits of the gate."""
        o = self.options
        return Limits(
            min_speedup=o.min_speedup,
            max_drop=o.max_drop,
            min_sqnr=o.min_sqnr,
            max_latency_ms=o.max_latency,
            max_bytes=o.max_size,
        )


def gather(prepared: Prepared, options: Options) -> Data:
    """Open the data, choose a diverse subset, hold samples back for the gate.

    Raises:
        CalibrationError: no data, or data that do not fit the model.
        OptionError: ``--show`` cannot be read.
    """
    shapes = asked_shapes(options.shapes, prepared.inputs)
    specs = prepared.inputs
    if options.calibration is None:
        specs = tuple(
            replace(spec, shape=tuple(shapes[spec.name][1])) if spec.name in shapes else spec
            for spec in specs
        )
    parse_show(options.show)  # a mistake in it is said before the work, not after
    feeds = open_feeds(
        options.calibration,
        specs,
        preprocess=options.preprocess,
        seed=options.seed,
        text=text_recipe(options.tokenizer, options.sequence),
    )
    findings = []
    calibration, held = hold_back(len(feeds))
    kept, gate = feeds.subset(calibration), feeds.subset(held)
    if calibration == held:
        findings.append(
            f"only {len(feeds)} samples: the gate judges on the calibration data themselves"
        )
    if len(kept) > options.samples:
        kept = kept.subset(diverse_indices(kept, options.samples))
        shown = ", ".join(kept.names[:3])
        findings.append(
            f"{options.samples} of {len(calibration)} samples chosen for diversity ({shown}, ...)"
        )
    digest = kept.sha256() if calibration == held else f"{kept.sha256()}+{gate.sha256()}"
    metric = make_metric(options, prepared.inputs, kept)
    findings += feeds.notes
    return Data(kept, gate, metric, digest, tuple(findings), shapes)


def doubted(prepared: Prepared, data: Data, options: Options, work: Path) -> Data:
    """The data with a finding for all that speaks against them, or against judging by SQNR."""
    told: list[str] = []
    if not data.random:
        feeds = data.selection()[:PLAUSIBLE]
        told += doubts(prepared.loaded.model, feeds, work, options.custom_ops)
    told += prepared.selected.findings()
    return replace(data, findings=(*data.findings, *told))


def start_plan(job: Job, ranges: dict[str, TensorRange], lock: Lock | None) -> PrecisionPlan:
    """All that can be integer, with what the user pinned; or the locked or given plan.

    Raises:
        OptionError: a selector matches nothing, or the given plan names unknown nodes.
    """
    if lock is not None:
        return lock.plan
    state = CompileState(job.prepared.model, job.prepared.target, ranges=ranges)
    refused = {s.origin: s.reason for s in job.prepared.sites if s.reason}
    plan = default_plan(state, refused)
    given = job.options.plan
    if job.base is not None:
        plan = job.base.lock.plan
    elif given is not None:
        plan = _follow(plan, given)
    pins = dict.fromkeys(job.options.keep_float, FLOAT)
    return plan.pin(pins, "kept float by the user") if pins else plan


def _follow(plan: PrecisionPlan, given: object) -> PrecisionPlan:
    if isinstance(given, (str, Path)):
        try:
            text = Path(given).read_text(encoding="utf-8")
        except OSError as e:
            raise OptionError(f"--plan '{given}' cannot be read: {e.strerror or e}") from e
        given = PrecisionPlan.from_json(text)
    if not isinstance(given, PrecisionPlan):
        raise OptionError(
            f"the plan is {type(given).__name__}; give a plan.json or a PrecisionPlan"
        )
    pinned = plan
    for layer in given.layers:
        pinned = pinned.pin({layer.origin: layer.precision}, layer.reason)
    return PrecisionPlan(
        tuple(
            replace(
                new, reason=new.reason if new.pinned else "not named by the given plan", pinned=True
            )
            if new.origin in given.by_origin() or new.pinned
            else replace(new, precision=FLOAT, reason="not named by the given plan", pinned=True)
            for new in pinned.layers
        )
    )
