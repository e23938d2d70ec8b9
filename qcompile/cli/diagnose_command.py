"""`qcompile diagnose BUILD [MODEL]`: where an artifact loses accuracy, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from qcompile.cli.flags import SETTINGS, data_flags, json_flag, path_argument
from qcompile.cli.output import Progress, print_json
from qcompile.data.inputs import Feed, input_specs
from qcompile.data.sources import open_feeds
from qcompile.diagnose import Diagnosis, Finding, diagnose
from qcompile.ir.errors import CalibrationError, ModelError
from qcompile.ir.load import load_model
from qcompile.subject import Subject, find_float_model, open_subject, stored_samples

__all__ = ["command"]


@click.command("diagnose", context_settings=SETTINGS)
@path_argument("build")
@path_argument("model", required=False)
@data_flags
@click.option("--most", type=int, default=5, show_default=True, help="Layers to list.")
@click.option("--threads", type=int)
@json_flag
def command(
    build: Path,
    model: Path | None,
    calibration: str | None,
    preprocess: str | None,
    custom_ops: Path | None,
    most: int,
    threads: int | None,
    as_json: bool,
) -> int:
    r"""Walk from the first layer where the artifact in BUILD departs from float; rank layers by error.

    Give samples as in deployment with -c: only they can show that the calibration data were unlike
    them. Without it the artifact's own samples are run. MODEL is looked for beside BUILD.

    \b
    qcompile diagnose model.ort-int8/ model.onnx -c real_samples/
    """
    subject = open_subject(build)
    found = find_float_model(subject, model)
    if found is None:
        raise ModelError(
            f"the float model of '{build}' is not beside it; give it: qcompile diagnose {build} MODEL"
        )
    with Progress(quiet=as_json) as progress:
        progress.stage("diagnose")
        result = diagnose(
            subject,
            found,
            _samples(subject, found, calibration, preprocess),
            most=most,
            threads=threads,
            custom_ops=custom_ops,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        print("\n".join(_lines(result)))
    return 0


def _samples(
    subject: Subject, model: Path, calibration: str | None, preprocess: str | None
) -> list[Feed]:
    if calibration is None:
        stored = stored_samples(subject.path)
        if not stored:
            raise CalibrationError(
                f"'{subject.path}' holds no samples (it was not delivered); pass some with -c"
            )
        return stored
    specs = input_specs(load_model(model).model)
    feeds = open_feeds(calibration, specs, preprocess=preprocess)
    return [feeds.load(i) for i in range(min(8, len(feeds)))]


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"compared on {found.samples} samples, as the Q/DQ graph is written"
    if found.likely is None:
        yield "no cause but the rounding itself was found"
    else:
        where = found.likely.node or "the input"
        yield f"MOST LIKELY: {found.likely.kind}, at {where}"
        yield f"     in '{found.likely.tensor}': {found.likely.text}"
        yield f"     remedy: {found.likely.remedy}"
    if found.first is None:
        yield "no tensor departs from float by more than 1 % of its channels' signal"
    else:
        yield f"departs from float first at {_place(found.first)}"
        yield from _why(found.first)
    if found.ranked:
        yield "layers by the error that each causes at the output alone:"
    for number, one in enumerate(found.ranked, 1):
        share = "not measured" if one.db is None else f"{one.db:.1f} dB below the output"
        yield f"{number}. {_place(one)}: {share}"
        yield from _why(one)


def _place(one: Finding) -> str:
    if not one.node:
        return f"input '{one.cause.tensor}'"
    return f"{one.node} ({one.op_type})"


def _why(one: Finding) -> Iterator[str]:
    where = f"'{one.cause.tensor}'"
    if one.cause.node and one.cause.node != one.node:
        where += f", written by {one.cause.node}"
    yield f"     likely cause: {one.cause.kind} in {where}: {one.cause.text}"
    for text in one.tried:
        yield f"     tried: {text}"
    yield f"     remedy: {one.cause.remedy}"
