"""Entry of the command line: commands by name, exit codes, and one clear line for every mistake."""

from __future__ import annotations

import atexit
import difflib
import gc
import glob
import io
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from qcompile.ir.errors import QCompileError

__all__ = ["main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "compile": (
        "qcompile.cli.compile_command",
        "Quantize a model and judge the result (the default command).",
    ),
    "check": ("qcompile.cli.check_command", "Judge any tool's quantized model by the same gate."),
    "init": ("qcompile.cli.init_command", "Write calib.py and qcompile.toml for a model."),
    "inspect": (
        "qcompile.cli.inspect_command",
        "Operators, shapes, sizes, what a target can quantize.",
    ),
    "report": ("qcompile.cli.report_command", "Make the page of an artifact again, or open it."),
    "targets": (
        "qcompile.cli.targets_command",
        "List targets and devices; show a capability table.",
    ),
    "compare": (
        "qcompile.cli.compare_command",
        "Outputs, first bad node, speed and size of two models.",
    ),
    "bench": ("qcompile.cli.bench_command", "Latency, throughput, start, memory and energy."),
    "explain": (
        "qcompile.cli.explain_command",
        "All that is known about one layer of an artifact.",
    ),
    "diff": ("qcompile.cli.diff_command", "What differs between two plans."),
    "verify": ("qcompile.cli.verify_command", "Check an artifact with the runtime installed now."),
    "doctor": ("qcompile.cli.doctor_command", "What is installed and what works on this machine."),
    "completion": ("qcompile.cli.completion_command", "Print the completion script of a shell."),
    "diagnose": ("qcompile.cli.diagnose_command", "Where an artifact departs from float, and why."),
    "profile": (
        "qcompile.cli.profile_command",
        "Measure the cost of each layer, for later compiles.",
    ),
    "engine": ("qcompile.cli.engine_command", "Build and time a TensorRT engine on its device."),
    "demo": ("qcompile.cli.demo_command", "Compile a small real network from the package alone."),
}
"""name -> module with a click command ``command``, imported only when it runs; its line in the list."""


class _Commands(click.Group):
    """`qcompile model.onnx ...` means `qcompile compile model.onnx ...`, and so does qcompile.toml alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import importlib

        if cmd_name not in COMMANDS:
            return None
        module, short = COMMANDS[cmd_name]
        loaded: click.Command = importlib.import_module(module).command
        # a docstring with backslashes is raw, and click looks for the character itself
        loaded.help = (loaded.help or "").replace("\\b\n", "\b\n")
        loaded.short_help = short
        return loaded

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, and models: the first word may be one.

        The mark for any file comes first: bash forgets what stood before it, and looks for files where
        nothing follows.
        """
        folder, _, begun = incomplete.rpartition("/")
        found = sorted(Path(folder or ".").glob(f"{glob.escape(begun)}*.onnx"))
        models = [f"{folder}/{p.name}" if folder else p.name for p in found]
        return [
            CompletionItem(incomplete, type="file"),
            *super().shell_complete(ctx, incomplete),
            *(CompletionItem(model) for model in models),
        ]

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
    atexit.register(
        gc.freeze
    )  # or all that is left is searched for garbage before the process ends
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
    stage, seconds = _told(error, "stage", ("", 0.0))
    folder, kept = _told(error, "kept", (None, []))
    where = f" in stage '{stage}' after {seconds:.0f} s" if stage else ""
    if kept:
        shorter = {
            "plan": "; --search-time 30s shortens this stage",
            "gate": "; --gate-time 5s shortens this stage",
        }.get(stage, "")
        return (
            f"interrupted{where}; no artifact was written, an earlier one is as it was; to resume run the "
            f"same command again: it takes {', '.join(kept)} from '{folder.name}' (delete that folder to "
            f"begin anew){shorter}"
        )
    shorter = "; --samples 64 shortens this stage" if stage == "calibrate" else ""
    return (
        f"interrupted{where}; nothing half-written was left behind, an earlier artifact is as it was; "
        f"to resume run the same command again, which begins anew{shorter}"
    )


def _told(error: BaseException, name: str, otherwise: Any) -> Any:
    """What the interrupted code noted on the interruption, which click turns into its own exception."""
    met = (getattr(e, name, None) for e in (error, error.__cause__, error.__context__))
    return next((m for m in met if m is not None), otherwise)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
