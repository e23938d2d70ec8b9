"""`qcompile diff A B`: what differs between two plans or artifacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from qcompile.cli.flags import SETTINGS, json_flag, path_argument
from qcompile.cli.output import print_json
from qcompile.plan_diff import diff_plans

__all__ = ["command"]

SHOWN = 12


@click.command("diff", context_settings=SETTINGS)
@path_argument("first")
@path_argument("second")
@click.option("--exit-code", is_flag=True, help="Exit with 3 when any layer differs.")
@json_flag
def command(first: Path, second: Path, exit_code: bool, as_json: bool) -> int:
    r"""List the layers whose precision differs between two plan.json files or artifact folders.

    Of two artifacts also the figures, and the inputs that they were compiled from.

    \b
    qcompile diff old/plan.json new/plan.json
    qcompile diff model.ort-int8/ nightly/model.ort-int8/ --exit-code
    """
    found = diff_plans(first, second)
    differ = bool(found["changed"] or found["only_first"] or found["only_second"])
    if as_json:
        print_json(found)
    else:
        print("\n".join(_lines(found, first, second, differ)))
    return 3 if exit_code and differ else 0


def _lines(found: Mapping[str, Any], first: Path, second: Path, differ: bool) -> Iterator[str]:
    for row in found["changed"]:
        yield f"  {row['origin']} ({row['op_type']}): {row['from']} -> {row['to']}"
        yield f"      {row['reason_before']}  ->  {row['reason_after']}"
    for key, path in (("only_first", first), ("only_second", second)):
        names = found[key]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"  only in {path}: {', '.join(names[:SHOWN])}{more}"
    for name, (before, after) in found["figures"].items():
        word = name.replace("_", " ").replace("integer mac share", "integer multiply-adds")
        yield f"  {word}: {_show(name, before)}" + (
            f" -> {_show(name, after)}" if before != after else ""
        )
    for name, (before, after) in found["inputs"].items():
        yield f"  {name}: {_short(before)} -> {_short(after)}"
    word = f"{len(found['changed'])} layers differ" if differ else "the same precision everywhere"
    yield f"{word}, {found['same']} are the same"


def _show(name: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "not measured" if value is None else str(value)
    forms = {"integer_mac_share": "{:.0%}", "speedup": "{:.2f}x", "sqnr_db": "{:.1f} dB"}
    return forms.get(name, "{:,}").format(value)


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
