"""Puts the JSON schema of reports, which lies in the package, on the site beside the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_post_build(config: Any, **_: Any) -> None:
    """Copy the schema when the site is written."""
    folder = Path(config["site_dir"]) / "schemas"
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "qcompile" / "report.schema.json", folder / "report.schema.json")
