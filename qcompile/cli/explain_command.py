"""`qcompile explain BUILD NODE`: everything an artifact knows of one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from qcompile.cli.flags import SETTINGS, json_flag, path_argument
from qcompile.cli.output import print_json
from qcompile.explain import explain_layer
from qcompile.subject import open_subject

__all__ = ["command"]


@click.command("explain", context_settings=SETTINGS)
@path_argument("build")
@click.argument("node")
@json_flag
def command(build: Path, node: str, as_json: bool) -> int:
    r"""Say everything that the artifact in BUILD knows of the layer NODE.

    NODE is the name of a node or tensor of your model, or a part of one that only one layer has.

    \b
    qcompile explain model.ort-int8/ /head/Conv
    qcompile explain model.ort-int8/ qkv/MatMul --json
    """
    found = explain_layer(open_subject(build), node)
    if as_json:
        print_json(found)
        return 0
    print("\n".join(_lines(found)))
    return 0


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['origin']}" + (f" ({found['op_type']})" if found.get("op_type") else "")
    if found["part_of"]:
        yield f"  part of: {found['part_of']} (fused)"
    if found["stands_for"]:
        yield f"  stands for: {', '.join(found['stands_for'])}"
    if found["known"]:
        yield f"  precision: {found['realised']}" + (
            f" (requested {found['requested']})" if found["realised"] != found["requested"] else ""
        )
        yield f"  because: {found['reason']}" + (" (pinned)" if found["pinned"] else "")
        yield f"  executed as: {', '.join(found['executed_as']) or 'no kernel of its own'}"
        yield f"  cost: {_cost(found)}"
        if found["macs"]:
            yield f"  multiply-adds: {found['macs']:,} ({found['mac_share']:.1%} of the model)"
        if found["error_db"] is not None:
            yield f"  error at the output by this layer alone: {found['error_db']:.1f} dB below it"
        elif found["sensitivity"] == 0.0:
            yield "  error at the output by this layer alone: none"
    for tensor in found["tensors"]:
        yield f"  {tensor['role']} {tensor['name']}: {_tensor(tensor)}"
    for note in found["notes"]:
        yield f"  {note['by']}: {note['text']}"


def _cost(found: Mapping[str, Any]) -> str:
    named = {"float_ns": "float", "int_ns": "int8", "dynamic_ns": "int8-dynamic"}
    merged = {**{k: found.get(k) for k in ("float_ns", "int_ns")}, **found["costs"]}
    parts = [f"{word} {merged[key] / 1e3:.1f} us" for key, word in named.items() if merged.get(key)]
    return ", ".join(parts) or "not measured"


def _tensor(tensor: Mapping[str, Any]) -> str:
    shape = "?" if tensor["shape"] is None else "x".join(str(d or "?") for d in tensor["shape"])
    text = f"{tensor['dtype'] or '?'}[{shape}]"
    if "range" in tensor:
        seen = tensor["range"]
        text += f", range {seen['low']:.4g} to {seen['high']:.4g} ({seen['method']})"
    how = tensor["quantized"]
    if how is None:
        return text
    low, high = how["scale"]
    if how["scales"] == 1:
        return f"{text}, as {how['dtype']}: scale {low:.4g}, zero point {how['zero_point'][0]}"
    return (
        f"{text}, as {how['dtype']}: {how['scales']} scales along axis {how['axis']}, "
        f"{low:.4g} to {high:.4g}"
    )
