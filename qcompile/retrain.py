"""``--from build/``: what an earlier compile decided, carried over to a retrained checkpoint.

Plan, range estimators, factors of channels and disabled passes are taken over; ranges are measured
anew with those estimators, weights learned and refitted anew, and the gate judges as ever. Nothing is
searched, which is what takes the time. What moved since then is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as oir

from qcompile.artifact import LOCK, open_artifact
from qcompile.calibration import Calibration, relative_move
from qcompile.ir.affine import TensorRange
from qcompile.ir.errors import OptionError
from qcompile.ir.graph import constant
from qcompile.lock import Lock
from qcompile.options import NAMES, Options
from qcompile.passes.quantizable import Site
from qcompile.planner.units import identified
from qcompile.prepare import Prepared
from qcompile.subject import open_subject

__all__ = ["Base", "carried_options", "moved", "moved_texts", "open_base"]

LISTED = 7

_CARRIED = (
    "disable",
    "keep_float",
    "fix_weights",
    "opset",
    "min_ort",
    "rest",
    "prefer",
    "techniques",
)
"""Options of the earlier compile that hold unless they are given again."""


@dataclass(frozen=True)
class Base:
    """An earlier compile.

    Attributes:
        path: its folder.
        lock: its ranges and plan.
        report: its report.json.
        portable: its Q/DQ model.
    """

    path: Path
    lock: Lock
    report: Mapping[str, Any]
    portable: oir.Model

    def check(self, prepared: Prepared) -> None:
        """Make sure that ``prepared`` has the same layers.

        Raises:
            OptionError: it has not; names the first layer that differs.
        """
        old = [(c.origin, c.op_type) for c in self.lock.plan.layers]
        new = [(s.origin, s.op_type) for s in prepared.sites]
        nodes = identified(self.portable)
        for index in range(max(len(old), len(new))):
            if index >= len(old):
                raise self._differs(new[index], "is not in it")
            if index >= len(new):
                raise self._differs(old[index], "is missing in this model")
            if old[index] != new[index]:
                raise self._differs(new[index], f"stands where it has {_named(old[index])}")
            site = prepared.sites[index]
            before, now = _weight(nodes.get(site.origin), site), constant(site.weight)
            if before is not None and now is not None and before.shape != now.shape:
                raise self._differs(
                    new[index], f"has a weight of shape {now.shape}; there it has {before.shape}"
                )

    def _differs(self, layer: tuple[str, str], what: str) -> OptionError:
        return OptionError(
            f"--from '{self.path}': the architecture differs: {_named(layer)} {what}; compile this "
            "model without --from"
        )

    def ranges(self, calibration: Calibration) -> dict[str, TensorRange]:
        """Ranges of the new statistics, each tensor by the estimator that it had."""
        methods = {n: r.method for n, r in self.lock.ranges.items()}
        found = calibration.ranges()
        for method in sorted(set(methods.values())):
            try:
                measured = calibration.ranges(method)
            except OptionError:
                continue  # chosen by a stage of its own, which runs again
            found.update({n: r for n, r in measured.items() if methods.get(n) == method})
        return found


def open_base(path: Path) -> Base:
    """What lies in the folder of an earlier compile.

    Raises:
        OptionError: no such folder, or it is incomplete.
    """
    if not path.is_dir():
        raise OptionError(f"--from '{path}' is no folder; give one that `qcompile ... -o` wrote")
    subject = open_subject(path)
    return Base(path, Lock.read(path / LOCK), subject.report(), oir.load(subject.layered))


def carried_options(options: Options) -> Options:
    """The options with those of the earlier compile where none were given."""
    if options.base is None:
        return options
    inputs = open_artifact(options.base).manifest.get("inputs", {})
    fresh = Options()
    taken: dict[str, Any] = {}
    for name in _CARRIED:
        value = inputs.get(f"option.{name}")
        if name in NAMES and value is not None and getattr(options, name) == getattr(fresh, name):
            taken[name] = tuple(value) if isinstance(value, list) else value
    return replace(options, **taken)


def _named(layer: tuple[str, str]) -> str:
    return f"'{layer[0]}' ({layer[1]})"


def _weight(node: oir.Node | None, site: Site) -> npt.NDArray[np.float64] | None:
    """A layer's weight in the earlier artifact, as real numbers."""
    index = None if site.row is None else site.row.weight
    if node is None or index is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    array = constant(value)
    if array is not None:
        return array.astype(np.float64)
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    stored, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
    if stored is None or scale is None:
        return None
    axis = producer.attributes.get_int("axis", 1)
    if scale.ndim:
        scale = scale.reshape((-1,) + (1,) * (stored.ndim - 1 - axis % stored.ndim))
    return np.asarray(stored.astype(np.float64) * scale.astype(np.float64))


def moved(
    base: Base,
    prepared: Prepared,
    ranges: Mapping[str, TensorRange],
    layers: Sequence[Mapping[str, Any]],
    gate: Mapping[str, Any],
) -> dict[str, Any]:
    """What differs from the earlier compile: ranges, weights, precision, accuracy; the most first."""
    nodes = identified(base.portable)
    weights = []
    for site in prepared.sites:
        before, now = _weight(nodes.get(site.origin), site), constant(site.weight)
        if before is None or now is None or before.shape != now.shape:
            continue
        size = float(np.linalg.norm(before)) or 1.0
        by = float(np.linalg.norm(now.astype(np.float64) - before)) / size
        weights.append({"origin": site.origin, "by": by})
    tensors = [
        {"tensor": name, "by": relative_move(base.lock.ranges[name], now)}
        | {"before": _ends(base.lock.ranges[name]), "after": _ends(now)}
        for name, now in ranges.items()
        if name in base.lock.ranges
    ]
    old = {row["origin"]: row["realised"] for row in base.report["layers"]}
    return {
        "base": base.path.name,
        "ranges": sorted(tensors, key=lambda row: -float(str(row["by"]))),
        "weights": sorted(weights, key=lambda row: -float(str(row["by"]))),
        "factors": {
            "carried": sorted(prepared.factors),
            "left": sorted(set(base.lock.factors) - set(prepared.factors)),
        },
        "layers": [
            {"origin": row["origin"], "before": old[row["origin"]], "after": row["realised"]}
            for row in layers
            if row["origin"] in old and old[row["origin"]] != row["realised"]
        ],
        "sqnr_db": [base.report["gate"]["sqnr_db"], gate["sqnr_db"]],
        "score": [_score(base.report["gate"]), _score(gate)],
    }


def moved_texts(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The same in a few lines."""
    told = [f"plan and estimators carried over from {found['base']}"]
    factors = found["factors"]
    if factors["left"]:
        total = len(factors["left"]) + len(factors["carried"])
        shown = ", ".join(factors["left"][:LISTED])
        told.append(f"factors of {len(factors['left'])} of {total} tensors left behind: {shown}")
    elif factors["carried"]:
        told.append(f"factors of {len(factors['carried'])} tensors carried over")
    for key, name in (("ranges", "tensor"), ("weights", "origin")):
        rows = found[key]
        if rows:
            shown = ", ".join(f"{row[name]} ({row['by']:.0%})" for row in rows[:3])
            far = sum(row["by"] > 0.1 for row in rows)
            told.append(f"{key} moved: {far} of {len(rows)} by more than 10 %; most: {shown}")
    if found["layers"]:
        rows = found["layers"][:LISTED]
        shown = ", ".join(f"{r['origin']}: {r['before']} -> {r['after']}" for r in rows)
        told.append(f"precision of {len(found['layers'])} layers changed: {shown}")
    else:
        told.append("precision of no layer changed")
    for key, form in (("sqnr_db", "SQNR {:.1f} dB"), ("score", "artifact's score {:.4g}")):
        before, after = found[key]
        if before is not None and after is not None:
            told.append(f"{form.format(before)} then, {form.format(after)} now")
    return tuple(told)


def _ends(limits: TensorRange) -> list[float]:
    return [float(limits.low), float(limits.high)]


def _score(gate: Mapping[str, Any]) -> float | None:
    score = gate["score"]
    return None if score is None else float(score["artifact_score"])
