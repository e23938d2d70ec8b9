"""`qcompile targets [NAME]`: the capability tables."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from qcompile.backends.tables import get_target, target_names

__all__ = ["command"]


@click.command("targets", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False)
@click.option("--device", help="Row of devices [native].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, device: str | None, as_json: bool) -> int:
    r"""List the targets, or show one target's table: what it runs in integers, and how we know.

    \b
    qcompile targets
    qcompile targets ort-int8 --device x86-avx2
    """
    if name is None:
        print(json.dumps(list(target_names())) if as_json else "\n".join(target_names()))
        return 0
    target = get_target(name, device)
    if as_json:
        print(json.dumps(asdict(target), indent=1, default=str))
        return 0
    console = Console()
    console.print(
        f"{target.name} on {target.device}: activations {target.activation.dtype}, ", end=""
    )
    console.print(f"weights {target.weight.dtype}, features {', '.join(target.features) or 'none'}")
    for note in target.notes:
        console.print(f"  {note}", markup=False)
    table = Table("operator", "role", "forms", "opset", "learned from")
    for row in target.ops.values():
        forms = [f for f, on in (("static", row.static), ("dynamic", row.dynamic)) if on]
        table.add_row(row.op_type, row.role, ", ".join(forms), f"{row.min_opset}+", row.source)
    for op_type, why in sorted(target.left_float.items()):
        table.add_row(op_type, "float", "", "", why)
    console.print(table)
    return 0
