"""`qcompile verify BUILD`: whether an artifact still is what it was, or what a target refuses in a model."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.against import Against, hold_against
from qcompile.backends.legality import REFUSED
from qcompile.backends.ort import check_runtime
from qcompile.backends.tables import get_target
from qcompile.cli.flags import SETTINGS, data_flags, json_flag, path_argument, verbosity_flags
from qcompile.cli.names import DEVICE, TARGET
from qcompile.cli.output import Progress, check_line, print_json
from qcompile.data.inputs import input_specs
from qcompile.data.sources import open_feeds
from qcompile.ir.errors import OptionError
from qcompile.ir.load import load_model
from qcompile.ir.target import Target
from qcompile.recheck import Recheck, recheck
from qcompile.subject import find_float_model, open_subject
from qcompile.units import parse_seconds

__all__ = ["command"]


@click.command("verify", context_settings=SETTINGS)
@path_argument("build")
@click.option(
    "--float", "float_model", type=click.Path(path_type=Path), help="Original model.onnx."
)
@click.option("--against", type=TARGET, help="List what a target refuses in a Q/DQ model.")
@click.option("--device", type=DEVICE, help="With --against: row of devices [native].")
@data_flags
@click.option("--threads", type=int, help="[as compiled]")
@click.option("--gate-time", default="10s", help="[10s]")
@json_flag
@verbosity_flags
def command(
    build: Path,
    float_model: Path | None,
    against: str | None,
    device: str | None,
    calibration: str | None,
    preprocess: str | None,
    custom_ops: Path | None,
    threads: int | None,
    gate_time: str,
    as_json: bool,
    verbose: bool,
    quiet: bool,
) -> int:
    r"""Check the artifact in BUILD: hashes, opening, stored outputs, and the gate once more.

    The gate runs under the ONNX Runtime that is installed now, on the samples stored in the artifact
    or on those of --calibration. With --against BUILD may be a quantized model of any tool, and all
    that the target refuses in it is listed. Exit code 3: something is not what it was, or is refused.

    \b
    qcompile verify model.ort-int8/
    qcompile verify model.ort-int8/ --float model.onnx --calibration data/ --threads 4
    qcompile verify anyones_qdq.onnx --against tensorrt-int8 --device sm89
    """
    subject = open_subject(build)
    if against is not None:
        target = get_target(against, device)
        held = hold_against(subject.layered, target, custom_ops)
        if as_json:
            print_json({**vars(held), "target": target.name, "device": target.device})
        else:
            _print_against(held, target, build)
        return 3 if held.refused else 0
    if subject.artifact is None:
        raise OptionError(
            f"'{build}' is a model, not an artifact's folder; judge it by "
            f"`qcompile check FLOAT {build}`"
        )
    check_runtime()
    base = find_float_model(subject, float_model)
    feeds, names = [], []
    if calibration is not None:
        specs = input_specs(load_model(base or subject.layered).model)
        found = open_feeds(calibration, specs, preprocess=preprocess)
        feeds, names = list(found), found.names
    with Progress(quiet=quiet or as_json, verbose=verbose) as progress:
        progress.stage("verify")
        result = recheck(
            subject,
            base,
            feeds,
            names=names,
            threads=threads,
            gate_time=parse_seconds(gate_time, "--gate-time"),
            custom_ops=custom_ops,
            progress=lambda _, share: progress.advance(share, 1.0),
        )
    if as_json:
        print_json({"checks": result.checks, "changed_versions": result.changed_versions})
    else:
        _print(result, build)
    return result.exit_code


def _print_against(held: Against, target: Target, build: Path) -> None:
    for row in held.found:
        print(f"  {row.text}")
    if held.library:
        print(f"  refused  {held.library}")
    print(f"  note: {held.pairs} Q and DQ nodes; {held.tried}")
    count = sum(r.effect == REFUSED for r in held.found) + bool(held.library)
    floats = sum(r.effect != REFUSED for r in held.found)
    also = f", runs {floats} layers in float only" if floats else ""
    word = f"REFUSED {build}: {target.name} on {target.device} refuses {count} things"
    print(
        (word if held.refused else f"ACCEPTED {build} by {target.name} on {target.device}") + also
    )


def _print(result: Recheck, build: Path) -> None:
    for check in result.checks:
        print(check_line(check.state, check.name, check.text))
    for name, (then, now) in result.changed_versions.items():
        print(f"  note: {name} {then or 'absent'} then, {now or 'absent'} now")
    if result.exit_code:
        print(f"NOT AS IT WAS: {build}; compile it again")
        return
    skipped = [c for c in result.checks if c.name == "gate"]
    print(f"VERIFIED {build}" + (" (without the gate)" if skipped else ""))
