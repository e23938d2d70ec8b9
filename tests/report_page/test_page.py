"""The page: one file, nothing from a network, any name is only text, equal reports give equal bytes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from qcompile.report import CompileReport
from qcompile.report_page.page import render_card, render_page
from qcompile.report_page.payload import TENSOR_BYTES, as_script, make_payload
from qcompile.report_page.summary import summarize
from qcompile.result import CompileResult
from tests.report_page.reports import make_report

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>"


def test_equal_reports_give_equal_pages() -> None:
    assert render_page(make_report()) == render_page(json.loads(json.dumps(make_report())))


def test_nothing_is_asked_of_a_network() -> None:
    page = render_page(make_report())
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "default-src &#39;none&#39;" in page
    assert "sourceMappingURL" not in page


def test_a_name_is_only_text() -> None:
    report = make_report(name=HOSTILE)
    report["layers"][0]["origin"] = report["graph"]["nodes"][0]["origin"] = HOSTILE
    report["samples"][0]["name"] = report["notes"][0]["where"] = HOSTILE
    for text in (render_page(report), render_card(report)):
        assert "<script>alert" not in text
        assert "<img src=x" not in text


def test_script_data_read_back_as_they_were() -> None:
    data = {"a": HOSTILE, "b": "\u2028&"}
    text = as_script(data)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == data


def test_a_report_of_before_has_a_page_too() -> None:
    report = make_report()
    for key in ("graph", "tensors", "weights", "operators", "samples", "left_out"):
        del report[key]
    del report["plan"]["front"]
    report["gate"]["speed"] = report["gate"]["speedup"] = None
    report["plan"]["candidates"][0]["speedup"] = None
    page = render_page(report)
    assert "not measured" in page
    assert make_payload(report)["nodes"]["edges"]


def test_reasons_for_float_are_told_with_their_layers() -> None:
    report = make_report()
    report["layers"][0] |= {"realised": "float", "executed_as": ["QuickGelu"]}
    page = render_page(report)
    assert "float is as fast here" in page
    assert "asked for int8, executed in float as QuickGelu" in page


def test_reasons_that_differ_in_names_and_numbers_are_one() -> None:
    report = make_report()
    why = ["its input '/a' is float", "its input '/b' is float", "as fast: 3.1 us against 4 us"]
    for layer, reason in zip(report["layers"], why, strict=False):
        layer |= {"requested": "float", "realised": "float", "reason": reason}
    told = {row["reason"]: row["count"] for row in summarize(report)["left_float"]}
    assert told == {"its input … is float": 2, why[2]: 1, "float is as fast here": 1}


def test_a_language_model_s_page_tells_of_its_matrices_and_generation() -> None:
    report = make_report()
    name = report["layers"][0]["origin"]
    known = {"algorithm": "gptq", "block": 64, "precision": "int4-weights", "shape": [64, 64]}
    report["matrices"] = [{"name": "w", "uses": [name], "sqnr_db": 21.25, **known}]
    report["tensors"] = report["weights"] = []
    report["language"] = {"perplexity": [30.2, 30.9], "positions": 640} | {
        "agreement": 0.911,
        "kl": 0.0312,
        "decoding": {"greedy_steps": 24, "greedy_agreement": 0.5, "prefill_tokens": 128}
        | {"prefill_ms": [180.0, 150.0], "prefill_tokens_per_s": [711.0, 853.0]}
        | {"decode_ms": [18.7, 6.2], "decode_tokens_per_s": [53.5, 161.0]}
        | {"decode_speedup": 3.02, "cached": False},
    }
    page = render_page(report)
    assert "gptq, blocks of 64" in page and "21.2" in page
    for text in ("30.20 → 30.90", "91.1% of next tokens alike", "53.5 → 161", "711 → 853"):
        assert text in page
    assert "12 of 24 tokens" in page
    report["language"]["decoding"] |= {
        "greedy_prompts": 6,
        "next_tokens": {"steps": 64, "agreement": 0.953},
        "cache_bytes": [5.9e6, 1.47e6],
    }
    page = render_page(report)
    assert "mean of 6; reading the text itself 95.3% of 64 steps" in page
    assert "5.9 → 1.47 MB" in page
    report["language"]["decoding"] = None
    assert "30.20 → 30.90" in render_page(report)
    assert make_payload(report)["nodes"]["weightDb"].count(21.25) == 1


def test_bins_are_joined_until_a_page_is_small() -> None:
    report = make_report(blocks=2000)
    before = json.dumps(report["tensors"])
    payload = make_payload(report)
    assert len(before) > TENSOR_BYTES
    assert len(as_script(payload["tensors"])) <= TENSOR_BYTES
    one = payload["tensors"]["histogram"][0]
    assert sum(one["counts"]) == sum(report["tensors"][0]["histogram"]["counts"])
    assert one["width"] * len(one["counts"]) == pytest.approx(48 * 0.0625)
    assert json.dumps(report["tensors"]) == before
    assert len(render_page(report).encode()) < 6_000_000


def test_a_result_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    report = make_report()
    refused = copy.deepcopy(report) | {"verdict": "not delivered", "warnings": ["random <data>"]}
    card = CompileResult(CompileReport(report), tmp_path, 0)._repr_html_()
    assert "2.00×" in card and "float is as fast here" in card and "<script" not in card
    assert "random &lt;data&gt;" in render_card(refused)
    assert card.count("<circle") == 2 and "<polyline" in card
    alone = make_report()
    alone["plan"]["candidates"] = alone["plan"]["candidates"][:1]
    del alone["graph"]
    assert "<svg" not in render_card(alone)
