"""What a run prints of its report."""

from __future__ import annotations

import copy
from typing import Any

from qcompile.report import CompileReport
from tests.report_page.reports import make_report


def with_outputs(values: list[float]) -> CompileReport:
    data: dict[str, Any] = copy.deepcopy(dict(make_report()))
    data["gate"]["outputs"] = [
        {"name": f"o{i}", "sqnr_db": v, "worst_sqnr_db": v - 1, "worst_sample": "s"}
        for i, v in enumerate(values)
    ]
    return CompileReport(data)


def listed(report: CompileReport) -> list[str]:
    return [line.strip() for line in report.summary().splitlines() if "output" in line]


def test_few_outputs_are_listed() -> None:
    assert listed(with_outputs([20.0, 30.0])) == [
        "output o0: SQNR 20.0 dB, worst sample 19.0 dB (s)",
        "output o1: SQNR 30.0 dB, worst sample 29.0 dB (s)",
    ]


def test_of_many_the_first_and_the_worst() -> None:
    assert listed(with_outputs([20.0, *(40.0 - i for i in range(30))])) == [
        "output o0: SQNR 20.0 dB, worst sample 19.0 dB (s)",
        "output o30: SQNR 11.0 dB, worst sample 10.0 dB (s)",
        "29 other outputs: SQNR 12.0 to 40.0 dB",
    ]
