"""`qcompile inspect MODEL`: inputs, operators, sizes, and what a target could run in integers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from qcompile.backends.tables import get_target
from qcompile.options import make_options
from qcompile.prepare import Prepared, prepare

__all__ = ["command", "inspection"]


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-t", "--target", default="ort-int8", help="[ort-int8]")
@click.option("--device", help="[native]")
@click.option("--nodes", is_flag=True, help="List every quantizable node by origin id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path, target: str, device: str | None, nodes: bool, as_json: bool) -> int:
    r"""Show what MODEL holds and what TARGET could run in integers, with the reason for the rest.

    \b
    qcompile inspect model.onnx
    qcompile inspect model.onnx --nodes --target ort-int8 --device x86-avx2
    """
    options = make_options(target=target, device=device)
    prepared = prepare(model, get_target(options.target, options.device), options)
    found = inspection(prepared, model.stat().st_size)
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    print(
        f"{model.name}: {found['bytes'] / 1e6:.1f} MB, IR {found['ir_version']}, opset {found['opset']}"
    )
    for line in found["inputs"]:
        print(f"  input  {line}")
    for line in found["outputs"]:
        print(f"  output {line}")
    listed = ", ".join(f"{n} {op}" for op, n in found["operators"].items())
    print(f"prepared: {found['nodes']} -> {found['prepared_nodes']} nodes: {listed}")
    for text in found["notes"]:
        print(f"  note: {text}")
    compute = [s for s in found["sites"] if s["role"] == "compute"]
    able = [s for s in compute if not s["reason"]]
    print(f"{len(able)} of {len(compute)} compute nodes can be integer on {target}")
    for reason, count in Counter(s["reason"] for s in compute if s["reason"]).items():
        print(f"  {count} stay float: {reason}")
    for site in found["sites"] if nodes else []:
        print(f"  {site['origin']}  {site['op_type']}  {site['reason'] or 'int8'}")
    return 0


def inspection(prepared: Prepared, size: int) -> dict[str, Any]:
    """What `inspect` shows, as plain data; ``size`` is the file's, in bytes."""
    original, model = prepared.loaded.model, prepared.model
    return {
        "bytes": size,
        "ir_version": original.ir_version,
        "opset": original.opset_imports.get("", 0),
        "inputs": [str(spec) for spec in prepared.inputs],
        "outputs": [f"{v.name}: {v.type}{v.shape}" for v in model.graph.outputs],
        "nodes": sum(1 for _ in original.graph),
        "prepared_nodes": sum(1 for _ in model.graph),
        "operators": dict(Counter(n.op_type for n in model.graph).most_common()),
        "notes": [f"{n.where}: {n.text}" if n.where else n.text for n in prepared.notes],
        "sites": [
            {"origin": s.origin, "op_type": s.op_type, "role": s.role, "reason": s.reason}
            for s in prepared.sites
        ],
    }
