"""`qcompile engine BUILD`: the second stage of an artifact for TensorRT, on a machine with a GPU."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.cli.flags import SETTINGS, json_flag, path_argument
from qcompile.cli.output import print_json
from qcompile.engine_run import run_engine
from qcompile.engine_runners import checked_by_polygraphy, run_provider
from qcompile.ir.errors import OptionError

__all__ = ["command"]


@click.command("engine", context_settings=SETTINGS)
@path_argument("build")
@click.option("--workspace", type=int, help="MiB that the builder may use [TensorRT's choice].")
@click.option("--seconds", type=float, help="Time for timing [5].")
@click.option("--min-sqnr", type=float, help="Least SQNR against float in dB [the artifact's].")
@click.option("--cache", help="Folder of engines and timings [BUILD/deploy/engines].")
@click.option("--refit", is_flag=True, help="Weights can be replaced later.")
@click.option("--sparsity", is_flag=True, help="Use 2:4 sparse kernels where weights allow it.")
@click.option("--version-compatible", is_flag=True, help="The engine opens in later TensorRT too.")
@click.option(
    "--polygraphy", is_flag=True, help="Run the engine with polygraphy, too, and compare."
)
@click.option("--ep", is_flag=True, help="Use ONNX Runtime's TensorRT provider instead.")
@json_flag
def command(
    build: Path,
    workspace: int | None,
    seconds: float | None,
    min_sqnr: float | None,
    cache: str | None,
    refit: bool,
    sparsity: bool,
    version_compatible: bool,
    polygraphy: bool,
    ep: bool,
    as_json: bool,
) -> int:
    r"""Build the engine of BUILD on this GPU, verify and time it, and complete the report.

    It does what BUILD/deploy/device.py does, which needs no qcompile. Exit codes: 0 delivered, 3 not
    delivered, 4 no TensorRT or no GPU here.

    \b
    qcompile engine model.tensorrt-int8/
    qcompile engine model.tensorrt-int8/ --workspace 2048 --cache ~/.cache/engines
    qcompile engine model.tensorrt-int8/ --ep
    """
    values = {"workspace": workspace, "seconds": seconds, "min-sqnr": min_sqnr, "cache": cache}
    flags = {"refit": refit, "sparsity": sparsity, "version-compatible": version_compatible}
    arguments = [f"--{name}={value}" for name, value in values.items() if value is not None]
    arguments += [f"--{name}" for name, given in flags.items() if given]
    if ep:
        given = [a for a in arguments if not a.startswith("--seconds=")]
        if given or polygraphy:
            raise OptionError(
                f"--ep takes no {given[0].split('=')[0] if given else '--polygraphy'}: ONNX Runtime's "
                "provider builds the engine; its options stand in deploy/provider_options.json"
            )
        done = run_provider(build, seconds)
    else:
        done = run_engine(build, arguments)
        if polygraphy:
            done = checked_by_polygraphy(build, done)
    if as_json:
        print_json(done.result)
    else:
        print(done.headline)
    return done.exit_code
