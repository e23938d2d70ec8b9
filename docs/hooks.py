"""Puts the JSON schema of reports, which lies in the package, on the site beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SCHEMA = Path(__file__).resolve().parent.parent / "qcompile" / "report.schema.json"
IN_CLONE, ON_SITE = "../qcompile/report.schema.json", "schemas/report.schema.json"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the schema to the site's files, so that links to it are checked too."""
    files.append(File.generated(config, ON_SITE, abs_src_path=str(SCHEMA)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Where the schema lies in the clone, to where it lies on the site."""
    return markdown.replace(f"({IN_CLONE})", f"({ON_SITE})")
