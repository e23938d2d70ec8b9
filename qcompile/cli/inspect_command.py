"""`qcompile inspect MODEL`: inputs, operators, sizes, and what a target could run in integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from qcompile.backends.tables import get_target
from qcompile.cli.flags import SETTINGS, json_flag, path_argument
from qcompile.cli.names import DEVICE, TARGET
from qcompile.cli.output import print_json
from qcompile.inspection import inspection
from qcompile.options import make_options
from qcompile.prepare import prepare
from qcompile.sizes import model_bytes

__all__ = ["command"]


@click.command("inspect", context_settings=SETTINGS)
@path_argument("model")
@click.option("-t", "--target", default="ort-int8", type=TARGET, help="[ort-int8]")
@click.option("--device", type=DEVICE, help="[native]")
@click.option("--nodes", is_flag=True, help="List every quantizable node by origin id.")
@click.option("--custom-ops", type=click.Path(path_type=Path), help="Library.")
@json_flag
def command(
    model: Path,
    target: str,
    device: str | None,
    nodes: bool,
    custom_ops: Path | None,
    as_json: bool,
) -> int:
    r"""Show what MODEL holds and what TARGET could run in integers, with the reason for the rest.

    \b
    qcompile inspect model.onnx
    qcompile inspect model.onnx --nodes --target ort-int8 --device x86-avx2
    qcompile inspect model.onnx --target tensorrt-int8 --json
    """
    options = make_options(target=target, device=device, custom_ops=custom_ops)
    prepared = prepare(model, get_target(options.target, options.device), options)
    found = inspection(prepared, model_bytes(model) or 0, custom_ops)
    if as_json:
        print_json(found)
    else:
        print("\n".join(_lines(found, model.name, target, nodes)))
    return 0


def _lines(found: Mapping[str, Any], name: str, target: str, nodes: bool) -> Iterator[str]:
    yield f"{name}: {found['bytes'] / 1e6:.1f} MB, IR {found['ir_version']}, opset {found['opset']}"
    for kind in ("input", "output"):
        for line in found[f"{kind}s"]:
            yield f"  {kind:<6} {line}"
    listed = ", ".join(f"{n} {op}" for op, n in found["operators"].items())
    yield f"prepared: {found['nodes']} -> {found['prepared_nodes']} nodes: {listed}"
    for text in found["notes"]:
        yield f"  note: {text}"
    if found["macs"]:
        shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in found["macs_at"].items())
        yield f"multiply-adds: {found['macs'] / 1e6:,.1f} million at {shapes}"
    elif found["macs_unknown"]:
        yield f"multiply-adds: not known, it does not run on made-up data: {found['macs_unknown']}"
    compute = [s for s in found["sites"] if s["role"] == "compute"]
    able = [s for s in compute if not s["reason"]]
    shares = [
        f"{found[key]:.0%} of the {word}"
        for key, word in (
            ("quantizable_mac_share", "multiply-adds"),
            ("quantizable_weight_share", "weights"),
        )
        if found[key] is not None
    ]
    also = f": {', '.join(shares)}" if shares else ""
    yield f"{len(able)} of {len(compute)} compute nodes can be integer on {target}{also}"
    for reason, count in Counter(s["reason"] for s in compute if s["reason"]).items():
        yield f"  {count} stay float: {reason}"
    for site in found["sites"] if nodes else []:
        size = f", {site['weight_bytes'] / 1e3:.1f} kB" if site["weight_bytes"] else ""
        macs = f", {site['macs']:,} multiply-adds" if site["macs"] else ""
        yield (
            f"  {site['origin']}  {site['op_type']} -> {site['output']}{size}{macs}: "
            f"{site['reason'] or 'can be integer'}"
        )
