"""report.json keeps to report.schema.json, and the schema describes all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from jsonschema import Draft202012Validator

import qcompile
from qcompile.report import REPORT_VERSION

SCHEMA = Path(qcompile.__file__).parent / "report.schema.json"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(loaded)
    return loaded


def top1(run: Any) -> float:
    return float(run({"image": np.zeros((1, 1, 28, 28), np.float32)})["logits"].shape[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"min_sqnr": 150.0}, {"metric": top1}, {"allow_random": True, "calibration": None}],
    ids=["delivered", "refused", "with a metric", "on random data"],
)
def test_a_report_keeps_to_it(
    schema: dict[str, Any],
    dwcnn: Path,
    calibration_feeds: list[dict[str, npt.NDArray[np.float32]]],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    given = {"calibration": calibration_feeds, "gate_time": "0.5s", "effort": "fast", "threads": 1}
    result = qcompile.compile(
        dwcnn, output=tmp_path / "o", min_speedup=0.01, **{**given, **options}
    )
    report = json.loads((result.path / "report.json").read_text(encoding="utf-8"))
    faults = [
        f"{list(e.path)}: {e.message}" for e in Draft202012Validator(schema).iter_errors(report)
    ]
    assert not faults
    assert undescribed(schema, schema, report) == []


def test_its_version_is_the_report_s(schema: dict[str, Any]) -> None:
    assert schema["properties"]["version"]["const"] == REPORT_VERSION


def undescribed(
    root: dict[str, Any], schema: dict[str, Any], value: Any, at: str = ""
) -> list[str]:
    """Keys of a report that its schema has no word on."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return [] if value is None else undescribed(root, schema["anyOf"][0], value, at)
    if isinstance(value, list):
        return [f for v in value for f in undescribed(root, schema.get("items", {}), v, f"{at}[]")]
    if not isinstance(value, dict):
        return []
    if "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        return [f for k, v in value.items() for f in undescribed(root, inner, v, f"{at}.{k}")]
    if "properties" not in schema:
        return [] if "description" in schema else [at]
    found = [f"{at}.{k}" for k in value if k not in schema["properties"]]
    for key, inner in schema["properties"].items():
        if key in value:
            found += undescribed(root, inner, value[key], f"{at}.{key}")
    return found
