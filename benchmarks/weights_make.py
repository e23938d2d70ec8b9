"""One algorithm on one grid, without the gate: what `qcompile --target ort-int4` rounds and lowers.

python benchmarks/weights_make.py MODEL.onnx TEXT TOKENIZER.json OUT.onnx ALGORITHM BITS BLOCK THREADS
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from qcompile.backends.tables import get_target
from qcompile.checkpoint import Checkpoint
from qcompile.ir.matrices import find_matrices
from qcompile.ir.save import save_model
from qcompile.job import Job, gather
from qcompile.options import make_options
from qcompile.prepare import prepare
from qcompile.round_weights import round_matrices
from qcompile.weights_flow import lower
from qcompile.weights_plan import choose_matrices

TARGETS = {2: "ort-int2", 3: "ort-int4", 4: "ort-int4", 8: "ort-int8-weights"}


def main(model: str, text: str, tokenizer: str, out: str, algorithm: str, *grid: str) -> None:
    """Prepare, round, lower, save."""
    bits, block, threads = map(int, grid)
    options = make_options(
        target=TARGETS[bits],
        calibration=text,
        tokenizer=tokenizer,
        algorithm=algorithm,
        bits=bits,
        block=block,
        threads=threads,
    )
    target = get_target(options.target)
    if target.weights is None:
        raise SystemExit(f"'{target.name}' has integer activations")
    prepared = prepare(model, target, options)
    with tempfile.TemporaryDirectory(prefix="weights-make-") as folder:
        work = Path(folder)
        job = Job(prepared, gather(prepared, options), options, Path(model), work)
        choices = choose_matrices(find_matrices(prepared.model)[0], target.weights, options)
        kept = Checkpoint(work / "rounded", {})
        rounded = round_matrices(
            job, choices, algorithm, lambda done, total: None, kept, toward=True
        )
        save_model(lower(prepared.model, rounded, target.weights), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
