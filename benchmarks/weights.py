"""Weight-only quantization of a language model: algorithms and grids side by side, beside ONNX Runtime's.

    python benchmarks/weights.py MODEL.onnx --text TEXT --tokenizer TOKENIZER.json [--rows ROW,ROW,...]
        [--peer PYTHON] [--peer-rows ROW,...] [--threads 1] [--windows 32] [--keep FOLDER] [--json out.json]

A row is ALGORITHM@BITSxBLOCK (rtn@4x32, gptq@3x128); "default" is what a user gets who asks for nothing.
PYTHON is an interpreter with ONNX Runtime's quantizer; its rows are those of weights_peer.py. The first
three quarters of the text are what every tool is given, perplexity is taken on windows of the last quarter.
Each compile runs in a process of its own: its processor seconds and its peak memory ("default" with the gate,
which is most of it, the other rows without). Models are then timed beside float, in turn: tokens per second,
and how many times float's. --keep leaves the models in FOLDER, and those that lie there are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from watched import Ran, run_watched

from qcompile.backends.ort import open_session
from qcompile.data.feeds import FeedSet
from qcompile.data.inputs import InputSpec
from qcompile.data.text import TextRecipe, open_text
from qcompile.environment import describe_machine, describe_versions
from qcompile.language import Language, compare_generation, language_of, perplexity
from qcompile.sizes import model_bytes

GRIDS = ("4x32", "4x128", "3x128", "2x32")
ROWS = (
    "default",
    *(f"{name}@{grid}" for grid in GRIDS for name in ("rtn", "hqq", "gptq", "awq", "descent")),
)
PEER_ROWS = (
    "dynamic",
    *(f"{k}@4x{b}" for b in (32, 128) for k in ("default", "rtn", "hqq", "gptq", "k_quant")),
)
LIMIT_S = 3 * 3600.0
HEAD = "| row | perplexity | to float | size | prefill tokens/s | decode tokens/s | processor | peak memory |"


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        name: as it was asked for.
        fault: why there is none, "" where there is one.
        perplexity: on held-back text.
        bytes: of the file, with external data.
        prefill: tokens per second, of one window; of float in the same turns, and of this one.
        decode: tokens per second, one by one; likewise.
        seconds: of processor time, of the compile.
        peak_mb: of it.
    """

    name: str
    fault: str = ""
    perplexity: float = math.nan
    bytes: int = 0
    prefill: tuple[float, float] = (0.0, 0.0)
    decode: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0
    peak_mb: float = 0.0

    def text(self, base: Row) -> str:
        """A line of the table."""
        if self.fault:
            return f"| {self.name} | {self.fault} |" + " |" * 6
        more = 100 * (self.perplexity / base.perplexity - 1)
        worse = "" if self is base else f"{more:+.1f} %" if more < 1000 else "lost"
        made = f"{self.seconds:.0f} s | {self.peak_mb:.0f} MB" if self.seconds else " | "
        size = f"{self.bytes / 1e6:.0f} MB, {self.bytes / base.bytes:.3f}"
        return (
            f"| {self.name} | {self.perplexity:.2f} | {worse} | {size} | {_rate(self.prefill)} | "
            f"{_rate(self.decode)} | {made} |"
        )


def _rate(pair: tuple[float, float]) -> str:
    ratio = f", {pair[1] / pair[0]:.2f}x" if pair[0] else ""
    return f"{pair[1]:.0f}{ratio}"


class Bench:
    """The float model, its text in two parts, and how others are held against it."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.model: Path = args.model
        self.tokenizer: Path = args.tokenizer
        self.threads: int = args.threads
        self.work = work
        self.keep: Path = args.keep or work
        self.keep.mkdir(parents=True, exist_ok=True)
        text = args.text.read_text(encoding="utf-8", errors="replace")
        cut = text.rfind("\n", 0, len(text) * 3 // 4) + 1 or len(text) * 3 // 4
        self.given, kept = work / "given.txt", work / "kept.txt"
        self.given.write_text(text[:cut], encoding="utf-8")
        kept.write_text(text[cut:], encoding="utf-8")
        session = open_session(self.model, threads=self.threads)
        self.specs = tuple(
            InputSpec(p.name, str(np.dtype(p.dtype)), tuple(p.shape)) for p in session.inputs
        )
        found = language_of(session, self.specs)
        if found is None:
            raise SystemExit(f"'{self.model}' has no token ids or no logits: no language model")
        self.language: Language = found
        windows = self.windows(kept)
        picked = np.unique(np.linspace(0, len(windows) - 1, args.windows).astype(int))
        self.feeds = [windows.load(int(i)) for i in picked]
        self.base = replace(self.row("float", self.model), seconds=0.0)

    def windows(self, text: Path) -> FeedSet:
        """Samples of 128 tokens."""
        return open_text(text, self.specs, TextRecipe(self.tokenizer), "--text")

    def row(self, name: str, model: Path, seconds: float = 0.0, peak_mb: float = 0.0) -> Row:
        """A model measured."""
        session = open_session(model, threads=self.threads)
        tokens, logits = self.language.tokens, self.language.logits
        found = perplexity(session.run, self.feeds, tokens, logits)
        del session
        beside = compare_generation(
            self.model, model, self.specs, self.feeds[:1], self.language, threads=self.threads
        )
        made = beside.decoding
        row = Row(name, "", found, model_bytes(model) or 0, seconds=seconds, peak_mb=peak_mb)
        if made is None:
            return row
        return replace(row, prefill=made.prefill_tokens_per_s, decode=made.decode_tokens_per_s)

    def compiled(self, name: str) -> Row:
        """A row of qcompile's: the whole compile for "default", else one algorithm without the gate."""
        out = self.work / "made"
        given = [str(self.model), str(self.given), str(self.tokenizer)]
        if name == "default":
            command = [
                sys.executable,
                "-m",
                "qcompile",
                given[0],
                "--target",
                "ort-int4",
                "--force",
            ]
            command += ["--calibration", given[1], "--tokenizer", given[2], "-o", str(out)]
            command += ["--threads", str(self.threads)]
            places = out / "model.onnx", out / "rejected" / "model.onnx"
            return self._measured(name, command, places)
        file = self.keep / f"{name}.onnx"
        script = str(Path(__file__).with_name("weights_make.py"))
        rest = [*map(str, _parts(name)), str(self.threads)]
        return self._measured(name, [sys.executable, script, *given, str(file), *rest], (file,))

    def of_peer(self, python: str, name: str) -> Row:
        """A row of ONNX Runtime's quantizer."""
        samples = self.work / "samples"
        if not samples.is_dir():
            samples.mkdir()
            given = self.windows(self.given)
            for i in np.unique(np.linspace(0, len(given) - 1, 64).astype(int)):
                np.savez(samples / f"{i:05d}.npz", allow_pickle=False, **given.load(int(i)))
        kind, bits, block = _parts(name) if "@" in name else (name, 8, 32)
        script = str(Path(__file__).with_name("weights_peer.py"))
        file = self.keep / f"peer-{name}.onnx"
        command = [python, script, kind, str(self.model), str(samples), str(file)]
        return self._measured(f"ONNX Runtime, {name}", [*command, str(bits), str(block)], (file,))

    def _measured(self, name: str, command: list[str], places: tuple[Path, ...]) -> Row:
        if any(p.is_file() for p in places):
            ran = Ran(0, "", 0.0, 0.0)
        else:
            ran = run_watched(command, LIMIT_S, self.work / "log.txt")
        made = next((p for p in places if p.is_file()), None)
        if made is None:
            return Row(name, ran.fault())
        try:
            return self.row(name, made, ran.processor_s, ran.peak_mb)
        except Exception as e:  # noqa: BLE001 - a model that does not run is a result
            return Row(name, f"{type(e).__name__}: {e}"[:160])


def _parts(name: str) -> tuple[str, int, int]:
    algorithm, _, grid = name.partition("@")
    bits, _, block = grid.partition("x")
    return algorithm, int(bits), int(block)


def main() -> None:
    """Print the table row after row, and write all of it as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--peer", help="a Python with ONNX Runtime's quantizer")
    parser.add_argument("--peer-rows", default=",".join(PEER_ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--keep", type=Path, help="where models stay")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="weights-", ignore_cleanup_errors=True) as folder:
        bench = Bench(args, Path(folder))
        print(HEAD, "|---" * 8 + "|", bench.base.text(bench.base), sep="\n", flush=True)
        rows = [bench.base]
        asked = [(bench.compiled, name) for name in args.rows.split(",") if name]
        for make, name in asked:
            rows.append(make(name))
            print(rows[-1].text(bench.base), flush=True)
        for name in args.peer_rows.split(",") if args.peer else ():
            rows.append(bench.of_peer(args.peer, name))
            print(rows[-1].text(bench.base), flush=True)
    if args.json is not None:
        found = {"rows": [asdict(r) for r in rows], "threads": args.threads}
        found |= {"machine": describe_machine(), "versions": describe_versions()}
        args.json.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
