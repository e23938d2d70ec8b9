"""`qcompile report FOLDER`: makes report.html again from report.json, and opens it."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Any

import click

from qcompile.artifact import record_file
from qcompile.ir.errors import OutputError
from qcompile.report import REPORT_VERSION
from qcompile.report_page.page import write_page

__all__ = ["command"]

JSON, PAGE = "report.json", "report.html"


@click.command("report", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("build", type=click.Path(path_type=Path))
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[BUILD/report.html]")
@click.option("--json", "as_json", is_flag=True, help="Print the page's path and size as JSON.")
def command(build: Path, show: bool, output: Path | None, as_json: bool) -> int:
    r"""Make the page of BUILD, an artifact folder or a report.json, again.

    \b
    qcompile report model.ort-int8/ --open
    qcompile report build/ -o public/index.html
    """
    source = build / JSON if build.is_dir() else build
    page = output or source.parent / PAGE
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(_read(source), page)
    except OSError as e:
        raise OutputError(f"'{page}' cannot be written: {e.strerror or e}; give another -o") from e
    if output is None:
        record_file(source.parent, PAGE)
    if as_json:
        print(json.dumps({"page": str(page), "bytes": page.stat().st_size}))
    else:
        print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    if show and not webbrowser.open(page.resolve().as_uri()):
        print(f"no browser was found; open {page.resolve().as_uri()}")
    return 0


def _read(source: Path) -> dict[str, Any]:
    """What report.json holds.

    Raises:
        OutputError: no such file, not JSON, or of another version.
    """
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except OSError as e:
        raise OutputError(
            f"'{source}' cannot be read ({e.strerror or e}); give the folder that "
            "`qcompile ... -o FOLDER` wrote"
        ) from e
    except ValueError as e:
        raise OutputError(f"'{source}' is no JSON ({e}); compile again") from e
    found = data.get("version") if isinstance(data, dict) else None
    if found != REPORT_VERSION or "verdict" not in data:
        raise OutputError(
            f"'{source}' is no report of version {REPORT_VERSION} (found {found!r}); compile again"
        )
    return dict(data)
