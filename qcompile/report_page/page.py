"""Renders report.json as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qcompile.report_page.card_charts import depth_line, plan_points
from qcompile.report_page.payload import as_script, make_payload
from qcompile.report_page.summary import summarize

__all__ = ["render_card", "render_page", "write_page"]

FOLDER = Path(__file__).parent
SCRIPTS = (
    "format",
    "unpack",
    "theme",
    "graph_view",
    "graph_input",
    "charts",
    "panel",
    "layers",
    "start",
)

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""The browser itself refuses every request to a network."""


def render_page(report: Mapping[str, Any]) -> str:
    """The page for what report.json holds; equal reports give equal text."""
    scripts = "\n".join(_text(f"{name}.js") for name in SCRIPTS)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            summary=summarize(report),
            policy=POLICY,
            style=Markup(_text("page.css")),
            chart=Markup(_library()),
            script=Markup(scripts),
            payload=Markup(as_script(make_payload(report))),
        )
    )


def render_card(report: Mapping[str, Any]) -> str:
    """HTML for a notebook's cell, without script: verdict, figures, two drawings, what stayed float."""
    return (
        _environment()
        .get_template("card.html.j2")
        .render(
            report=report,
            summary=summarize(report),
            plans=plan_points(report),
            depth=depth_line(report),
        )
    )


def write_page(report: Mapping[str, Any], path: Path) -> None:
    """Write ``render_page(report)`` as UTF-8."""
    path.write_text(render_page(report), encoding="utf-8", newline="\n")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _library() -> str:
    """The plotting library without the pointer to its source map, which a browser would look for."""
    lines = _text("vendor/chart.umd.min.js").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL"))
