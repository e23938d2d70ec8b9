"""`qcompile targets [NAME]`: the capability tables."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from qcompile.backends.devices import device_names, get_device
from qcompile.backends.devices_gpu import get_gpu, gpu_names
from qcompile.backends.tables import get_target, target_names
from qcompile.cli.flags import SETTINGS, json_flag
from qcompile.cli.names import DEVICE, TARGET
from qcompile.cli.output import print_json
from qcompile.ir.errors import TargetError
from qcompile.ir.target import Target

__all__ = ["command"]


@click.command("targets", context_settings=SETTINGS)
@click.argument("name", required=False, type=TARGET)
@click.option("--device", type=DEVICE, help="Row of devices [native].")
@json_flag
def command(name: str | None, device: str | None, as_json: bool) -> int:
    r"""List the targets and devices, or show one target's table: what it runs in integers, and how we know.

    \b
    qcompile targets
    qcompile targets ort-int8 --device x86-avx2
    qcompile targets tensorrt-int8 --device jetson-orin --json
    """
    if name is None:
        _list(as_json)
        return 0
    target = get_target(name, device)
    if as_json:
        print_json(asdict(target))
        return 0
    _show(target)
    return 0


def _list(as_json: bool) -> None:
    cpus = [get_device(n) for n in device_names() if n != "native"]
    gpus = [get_gpu(n) for n in gpu_names() if n != "native"]
    if as_json:
        print_json({"targets": target_names(), "cpus": cpus, "gpus": gpus})
        return
    console = Console(highlight=False)
    table = Table("target", "here", "activations", "weights", "operators", box=None, pad_edge=False)
    for name in target_names():
        try:
            found = get_target(name)
        except TargetError as e:
            table.add_row(name, "no", "", "", str(e))
            continue
        forms = ", ".join(found.ops) or "everything in half precision"
        kinds = (found.activation.dtype, found.weight.dtype) if found.ops else ("", "")
        if found.weights is not None:
            bits = found.weights.bits
            kinds = ("float", "nf4" if found.weights.codebook else f"{bits} bits in blocks")
            read = "MatMul and Gemm" if found.weights.dequantized else "MatMul, Gemm and Gather"
            forms = f"constant matrices of {read}"
        table.add_row(name, found.device, *kinds, forms)
    console.print(table)
    console.print("\nCPUs (--device), for ort-*:")
    table = Table(box=None, pad_edge=False, show_header=False)
    here = get_device().name
    for cpu in cpus:
        mark = " (this machine)" if cpu.name == here else ""
        table.add_row(f"  {cpu.name}{mark}", ", ".join(cpu.features), cpu.source)
    console.print(table)
    console.print("\nGPUs (--device), for tensorrt-*:")
    table = Table(box=None, pad_edge=False, show_header=False)
    for gpu in gpus:
        kernels = (
            ("INT8", gpu.int8_products),
            ("INT4 weights", gpu.int4),
            ("FP8", gpu.fp8),
            ("FP4", gpu.fp4),
        )
        able = [word for word, on in kernels if on]
        table.add_row(f"  {gpu.name}", ", ".join(able) or "half precision only", gpu.source)
    console.print(table)
    console.print("\nqcompile targets NAME shows a table")


def _show(target: Target) -> None:
    console = Console(highlight=False)
    read = target.activation.dtype if target.weights is None else "float"
    kinds = f"activations {read}, weights {target.weight.dtype}"
    features = ", ".join(target.features) or "none"
    console.print(f"{target.name} on {target.device}: {kinds}, features {features}", markup=False)
    for note in target.notes:
        console.print(f"  {note}", markup=False)
    if target.weights is not None:
        form = target.weights
        learned = f"  {form.bits} bits in blocks of {form.block}: {form.source}"
        console.print(learned, markup=False)
        return
    table = Table("operator", "role", "forms", "opset", "learned from")
    for row in target.ops.values():
        forms = [f for f, on in (("static", row.static), ("dynamic", row.dynamic)) if on]
        table.add_row(row.op_type, row.role, ", ".join(forms), f"{row.min_opset}+", row.source)
    for op_type, why in sorted(target.left_float.items()):
        table.add_row(op_type, "float", "", "", why)
    console.print(table)
