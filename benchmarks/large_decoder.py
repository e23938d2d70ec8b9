"""A decoder that is larger than memory: generated, compiled under a limit, killed, begun again.

    python benchmarks/large_decoder.py FOLDER --gigabytes 8 --limit 4GB --kill 0.5

writes FOLDER/decoder.onnx with seeded weights in decoder.onnx.data, compiles it, and prints the peak of
memory and the hashes of what was written. With --kill a second compile gets SIGKILL when that share of
the matrices is done, is begun again, and must write the same bytes. --model takes any other model.

The limit is RLIMIT_DATA: what a process may allocate for itself, memory that the kernel cannot take
back. Files that are mapped do not count, because their pages can be dropped at any time; that is why
RLIMIT_AS (`ulimit -v`) says nothing here, it counts mapped files whole. The peak that is printed is the
sum of anonymous memory (RssAnon) of the process and its children, looked at every 50 ms; child processes
keep the limit each.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

from qcompile.artifact import file_sha256

WIDTH, INNER, HEADS, VOCABULARY = 2048, 4096, 16, 32000
LOOK_EVERY = 0.05


def generate(path: Path, gigabytes: float, seed: int = 0) -> int:
    """Write a decoder of about this size; returns its layers.

    As exported today: RMS norm written out (gains of one left out), causal attention, gated SiLU, the
    head tied to the embedding.
    """
    size = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER
    layers = max(1, round((gigabytes * 1e9 / 4 - VOCABULARY * WIDTH) / size))
    nodes, tensors = [], []
    data = path.with_name(f"{path.name}.data")
    rng = np.random.default_rng(seed)

    with data.open("wb") as out:

        def weight(name: str, rows: int, columns: int, scale: float) -> str:
            at = out.tell()
            for start in range(0, rows, 1024):
                part = rng.standard_normal((min(1024, rows - start), columns), np.float32)
                out.write((part * np.float32(scale)).tobytes())
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, columns])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": data.name, "offset": at, "length": out.tell() - at}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            return name

        def constant(name: str, values: object, kind: type) -> str:
            tensors.append(onnx.numpy_helper.from_array(np.array(values, kind), name))
            return name

        def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
            return output

        def norm(x: str, name: str) -> str:
            square = node("Pow", [x, "two"], f"{name}/square")
            mean = node("ReduceMean", [square], f"{name}/mean", axes=[-1])
            root = node("Sqrt", [node("Add", [mean, "epsilon"], f"{name}/safe")], f"{name}/root")
            return node("Div", [x, root], f"{name}/normed")

        constant("two", 2, np.float32)
        constant("epsilon", 1e-5, np.float32)
        constant("split", [0, 0, HEADS, WIDTH // HEADS], np.int64)
        constant("join", [0, 0, WIDTH], np.int64)
        constant("root", (WIDTH / HEADS) ** -0.5, np.float32)
        constant("far", -1e9, np.float32)
        constant("one", [1], np.int64)
        constant("zero_i", 0, np.int64)
        constant("one_i", 1, np.int64)
        weight("embedding", VOCABULARY, WIDTH, 1.0)

        length = node("Squeeze", [node("Shape", ["input_ids"], "shape", start=1, end=2)], "length")
        steps = node("Range", ["zero_i", length, "one_i"], "steps")
        later = node(
            "Less",
            [node("Unsqueeze", [steps, "one"], "query"), steps],
            "later",
        )
        mask = node("Mul", [node("Cast", [later], "later_f", to=TensorProto.FLOAT), "far"], "mask")
        x = node("Gather", ["embedding", "input_ids"], "x")
        small = 1 / (2 * layers) ** 0.5
        for i in range(layers):
            at = f"layer{i}"
            h = norm(x, f"{at}/input_norm")
            heads = {}
            for part in "qkv":
                w = weight(f"{at}/{part}_weight", WIDTH, WIDTH, WIDTH**-0.5)
                flat = node("MatMul", [h, w], f"{at}/{part}")
                shaped = node("Reshape", [flat, "split"], f"{at}/{part}_heads")
                perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
                heads[part] = node("Transpose", [shaped], f"{at}/{part}_turned", perm=perm)
            scores = node("MatMul", [heads["q"], heads["k"]], f"{at}/scores")
            scaled = node("Mul", [scores, "root"], f"{at}/scaled")
            masked = node("Add", [scaled, mask], f"{at}/masked")
            share = node("Softmax", [masked], f"{at}/share", axis=-1)
            mixed = node("MatMul", [share, heads["v"]], f"{at}/mixed")
            back = node("Transpose", [mixed], f"{at}/back", perm=[0, 2, 1, 3])
            joined = node("Reshape", [back, "join"], f"{at}/joined")
            w = weight(f"{at}/o_weight", WIDTH, WIDTH, small * WIDTH**-0.5)
            x = node("Add", [x, node("MatMul", [joined, w], f"{at}/o")], f"{at}/after_attention")
            h = norm(x, f"{at}/mlp_norm")
            w = weight(f"{at}/gate_weight", WIDTH, INNER, WIDTH**-0.5)
            gate = node("MatMul", [h, w], f"{at}/gate")
            silu = node("Mul", [gate, node("Sigmoid", [gate], f"{at}/sigmoid")], f"{at}/silu")
            w = weight(f"{at}/up_weight", WIDTH, INNER, WIDTH**-0.5)
            up = node("MatMul", [h, w], f"{at}/up")
            both = node("Mul", [silu, up], f"{at}/both")
            w = weight(f"{at}/down_weight", INNER, WIDTH, small * INNER**-0.5)
            x = node("Add", [x, node("MatMul", [both, w], f"{at}/down")], f"{at}/after_mlp")
        turned = node("Transpose", ["embedding"], "turned", perm=[1, 0])
        node("MatMul", [norm(x, "last_norm"), turned], "logits")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY]
    )
    graph = helper.make_graph(nodes, "decoder", [ids], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return layers


@dataclass(frozen=True)
class Run:
    """How a compile went.

    Attributes:
        code: exit code, below zero a signal.
        seconds: wall time.
        peak: largest sum of anonymous memory of the process and its children, bytes.
        own: the same of the largest single process.
        text: what it printed.
    """

    code: int
    seconds: float
    peak: int
    own: int
    text: str


def compile_under(
    model: Path, output: Path, limit: int, options: list[str], log: Path, kill_at: int | None = None
) -> Run:
    """Compile with an allocation limit; SIGKILL when ``kill_at`` matrices are done."""
    command = ["sh", "-c", 'ulimit -d "$0"; exec "$@"', str(limit // 1024), sys.executable]
    command += ["-m", "qcompile", str(model), "--output", str(output), *options]
    progress = output.with_name(f".{output.name}.progress")

    peak = own = 0
    start = time.perf_counter()
    with log.open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            sizes = list(_anonymous(process.pid))
            peak, own = max(peak, sum(sizes)), max([own, *sizes])
            if kill_at is not None and len(list(progress.glob("*/*/about.json"))) >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(LOOK_EVERY)
        out.seek(0)
        return Run(process.returncode, time.perf_counter() - start, peak, own, out.read())


def _anonymous(pid: int) -> Iterator[int]:
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return
    for one in processes:
        try:
            status = Path(f"/proc/{one.pid}/status").read_text()
        except OSError:
            continue
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        if found:
            yield int(found[1]) * 1024


def digests(folder: Path) -> dict[str, str]:
    """sha256 of the artifact's model and its side file."""
    found = {}
    for path in sorted([*folder.glob("model.onnx*"), *folder.glob("rejected/model.onnx*")]):
        found[path.name] = file_sha256(path)
    return found


def report(what: str, run: Run) -> None:
    """One line, and the compile's own last lines where it failed."""
    print(
        f"{what}: exit {run.code}, {run.seconds:.0f} s, peak {run.peak / 1e9:.2f} GB "
        f"(largest process {run.own / 1e9:.2f} GB)",
        flush=True,
    )
    for line in run.text.strip().splitlines()[-6:]:
        print(f"    {line}")


def main() -> int:
    """Generate, compile, kill, begin again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, help="instead of a generated one")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--limit", default="4GB")
    parser.add_argument("--kill", type=float, help="share of the matrices, 0 to 1")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="leave all files where they are")
    parser.epilog = "what stands behind -- goes to qcompile"
    given, _, more = " ".join(sys.argv[1:]).partition(" -- ")
    asked = parser.parse_args(given.split())
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    limit = int(float(asked.limit.removesuffix("GB")) * 1e9)
    options = ["--target", "ort-int4", *more.split()]
    model = asked.model
    if model is None:
        model = folder / "decoder.onnx"
        if not model.exists():
            layers = generate(model, asked.gigabytes)
            print(f"{layers} layers, {(folder / 'decoder.onnx.data').stat().st_size / 1e9:.2f} GB")
        data = folder / "data"
        data.mkdir(exist_ok=True)
        rng = np.random.default_rng(1)
        for i in range(asked.samples):
            ids = rng.integers(0, VOCABULARY, (1, asked.tokens))
            np.savez(data / f"{i}.npz", input_ids=ids)
        options = ["--calibration", str(data), *options]
    whole = compile_under(model, folder / "whole", limit, options, folder / "whole.log")
    report(f"compiled under {limit / 1e9:g} GB", whole)
    wanted = digests(folder / "whole")
    print(f"    {wanted}")
    same = bool(wanted)
    if asked.kill is not None and wanted:
        found = onnx.load(
            next(p for p in (folder / "whole").rglob("model.onnx")), load_external_data=False
        )
        names = {"MatMulNBits", "MatMulBnb4"}
        stop = max(1, round(asked.kill * sum(n.op_type in names for n in found.graph.node)))
        shutil.rmtree(folder / "again", ignore_errors=True)
        killed = compile_under(
            model, folder / "again", limit, options, folder / "killed.log", kill_at=stop
        )
        report(f"killed at matrix {stop}", killed)
        again = compile_under(model, folder / "again", limit, options, folder / "again.log")
        report("begun again", again)
        same = digests(folder / "again") == wanted
        print(f"    {'the same bytes' if same else 'OTHER BYTES'}")
    if not asked.keep:
        for path in (folder / "whole", folder / "again"):
            shutil.rmtree(path, ignore_errors=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
