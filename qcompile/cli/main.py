"""Entry of the command line: commands by name, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import difflib
import io
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from qcompile.ir.errors import QCompileError

__all__ = ["main"]

COMMANDS: dict[str, str] = {
    "compile": "qcompile.cli.compile_command",
    "check": "qcompile.cli.check_command",
    "init": "qcompile.cli.init_command",
    "inspect": "qcompile.cli.inspect_command",
    "report": "qcompile.cli.report_command",
    "targets": "qcompile.cli.targets_command",
    "compare": "qcompile.cli.compare_command",
    "bench": "qcompile.cli.bench_command",
    "explain": "qcompile.cli.explain_command",
    "diff": "qcompile.cli.diff_command",
    "verify": "qcompile.cli.verify_command",
    "doctor": "qcompile.cli.doctor_command",
    "completion": "qcompile.cli.completion_command",
    "diagnose": "qcompile.cli.diagnose_command",
    "profile": "qcompile.cli.profile_command",
    "engine": "qcompile.cli.engine_command",
    "demo": "qcompile.cli.demo_command",
}
"""name -> module with a click command called ``command``; imported only when it runs."""


class _Commands(click.Group):
    """`qcompile model.onnx ...` means `qcompile compile model.onnx ...`, and so does qcompile.toml alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        loaded: click.Command = importlib.import_module(module).command
        return loaded

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, and files: the first word may be a model."""
        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="file")]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and Path("qcompile.toml").is_file():
            args = ["compile"]
        own = {"-h", "--help", "--version", "--debug"}
        first = next((a for a in args if a not in own), None)
        if first is not None and first not in COMMANDS and not set(args) & {"--version"}:
            near = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.7)
            looks_like_model = (
                first.startswith("-") or "." in first or "/" in first or "\\" in first
            )
            if near and not looks_like_model:
                raise click.UsageError(f"'{first}' is no command; did you mean '{near[0]}'?")
            args = (
                [a for a in args if a == "--debug"]
                + ["compile"]
                + [a for a in args if a != "--debug"]
            )
        return super().parse_args(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="`qcompile MODEL.onnx --target ort-int8 --calibration DATA` is short for `qcompile compile ...`.",
)
@click.version_option(package_name="qcompile", prog_name="qcompile")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile an ONNX model to a quantized one that is valid, measured and explained."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 delivered (or not measured, or inconclusive), 1 internal error, 2 bad input or options,
        3 gate not met, 4 hardware or runtime missing, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names of tensors are any text, and not every console or pipe can show it
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in args
    if debug:
        args = ["--debug"] + [a for a in args if a != "--debug"]
    try:
        result = cli.main(args, prog_name="qcompile", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except (KeyboardInterrupt, click.Abort) as e:
        _say(_interrupted(e))
        return 130
    except click.exceptions.NoArgsIsHelpError as e:
        _say(e.format_message())
        return 2
    except click.ClickException as e:
        _say(f"error: {e.format_message()}")
        _say("`qcompile --help` lists commands and options")
        return 2
    except QCompileError as e:
        if debug:
            traceback.print_exc()
        _say(f"error: {e}")
        return e.exit_code
    except MemoryError:
        _say(
            "error: not enough memory for this model; pass --memory-limit, or use a larger machine"
        )
        return 2
    except Exception as e:  # noqa: BLE001 - the last resort: one line, exit code 1
        if debug:
            traceback.print_exc()
        _say(
            f"internal error: {type(e).__name__}: {e}; run again with --debug and report the traceback"
        )
        return 1


def _interrupted(error: BaseException) -> str:
    """What became of the work, and how to go on."""
    # click turns the interruption into its own exception
    met = [getattr(e, "stage", None) for e in (error, error.__cause__)]
    stage, seconds = next((m for m in met if m is not None), ("", 0.0))
    where = f" in stage '{stage}' after {seconds:.0f} s" if stage else ""
    shorter = {
        "plan": "; --effort fast or --search-time 30s shortens this stage",
        "learn": "; --effort fast shortens this stage",
        "gate": "; --gate-time 5s shortens this stage",
        "calibrate": "; --samples 64 shortens this stage",
    }.get(stage, "")
    return (
        f"interrupted{where}; nothing half-written was left behind, an earlier artifact is as it was; "
        f"to resume run the same command again, which begins anew{shorter}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
