"""What differs between two plans, or between two artifacts: layers, figures, inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.artifact import open_artifact
from qcompile.ir.errors import OptionError
from qcompile.ir.plan import PrecisionPlan

__all__ = ["diff_plans"]

_FIGURES = ("verdict", "integer_mac_share", "speedup", "sqnr_db", "artifact_bytes")


def diff_plans(first: Path, second: Path) -> dict[str, Any]:
    """Differences from ``first`` to ``second``, each a plan.json or an artifact's folder.

    Figures and inputs are compared when both are folders.

    Raises:
        OptionError: a plan cannot be read.
        OutputError: a folder is no artifact.
    """
    one, two = _plan(first), _plan(second)
    before, after = one.by_origin(), two.by_origin()
    found: dict[str, Any] = {
        "changed": [
            {
                "origin": name,
                "op_type": after[name].op_type,
                "from": old.precision,
                "to": after[name].precision,
                "reason_before": old.reason,
                "reason_after": after[name].reason,
            }
            for name, old in before.items()
            if name in after and after[name].precision != old.precision
        ],
        "only_first": [name for name in before if name not in after],
        "only_second": [name for name in after if name not in before],
        "same": sum(
            name in after and after[name].precision == old.precision for name, old in before.items()
        ),
        "figures": {},
        "inputs": {},
    }
    if first.is_dir() and second.is_dir():
        reports = [open_artifact(path).report for path in (first, second)]
        sides = [_figures(report) for report in reports]
        found["figures"] = {k: [sides[0][k], sides[1][k]] for k in _FIGURES}
        found["inputs"] = _differing(*(_flat(report["inputs"]) for report in reports))
    return found


def _plan(path: Path) -> PrecisionPlan:
    file = path
    if path.is_dir():
        open_artifact(path)
        file = path / "plan.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(
            f"'{file}' cannot be read as a plan ({e}); give a plan.json or an artifact's folder"
        ) from e
    try:
        return PrecisionPlan.from_json(text)
    except OptionError as e:
        raise OptionError(f"'{file}': {e}") from e


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    gate = report["gate"]
    return {
        "verdict": report["verdict"],
        "integer_mac_share": report["integer_mac_share"],
        **{key: gate.get(key) for key in ("speedup", "sqnr_db", "artifact_bytes")},
    }


def _flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Options, hashes and versions under one level of names."""
    flat: dict[str, Any] = {}
    for key, value in inputs.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = sorted({*one, *two})
    return {n: [one.get(n), two.get(n)] for n in names if one.get(n) != two.get(n)}
