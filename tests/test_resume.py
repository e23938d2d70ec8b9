"""A compile that is killed with SIGKILL, in a process of its own, and begun again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODEL = """
import os, signal, sys
from pathlib import Path
import numpy as np, onnx
import qcompile
from qcompile import checkpoint

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

def model():
    proto = onnx.parser.parse_model('''
    <ir_version: 8, opset_import: ["" : 17]>
    lm (int64[batch, seq] ids) => (float[batch, seq, 256] logits) {
      x = Gather (embedding, ids)
      h = MatMul (x, up)
      r = Relu (h)
      d = MatMul (r, down)
      s = Add (x, d)
      g = MatMul (s, last)
      t = Tanh (g)
      turned = Transpose <perm = [1, 0]> (embedding)
      logits = MatMul (t, turned)
    }''')
    rng = np.random.default_rng(0)
    shapes = {"embedding": (256, 64), "up": (64, 128), "down": (128, 64), "last": (64, 64)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype("f"), name))
    return proto

def kill_at(count, within):
    '''End this process at the matrix with this number: in the middle of writing it, or just behind.'''
    saves = []
    real_save, real_rename = checkpoint.Checkpoint.save, Path.rename
    def rename(path, to):
        if within and len(saves) == count and path.suffix == ".part":
            os.kill(os.getpid(), KILL)
        return real_rename(path, to)
    def save(self, *rest):
        saves.append(rest[0])
        found = real_save(self, *rest)
        if len(saves) == count:
            os.kill(os.getpid(), KILL)
        return found
    checkpoint.Checkpoint.save, Path.rename = save, rename

if __name__ == "__main__":
    folder, algorithm, count, within = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if count:
        kill_at(count, within == "within")
    path = folder / "model.onnx"
    if not path.exists():
        onnx.save(model(), path)
    rng = np.random.default_rng(1)
    feeds = [{"ids": rng.integers(0, 256, (1, 24))} for _ in range(8)]
    result = qcompile.compile(
        path, target="ort-int4", calibration=feeds, algorithm=algorithm, output=folder / "out",
        min_speedup=1e-6, min_sqnr=0, gate_time="0.05s", threads=1, block=32,
    )
    print(result.verdict)
"""


def run(folder: Path, algorithm: str, count: int = 0, within: str = "") -> int:
    script = folder / "compile_it.py"
    script.write_text(MODEL, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), algorithm, str(count), within]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_killed_while_writing_and_begun_again_gives_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(whole, "gptq") == 0
    assert run(killed, "gptq", 3, "within") != 0
    progress = killed / ".out.progress"
    done = [p.parent.suffix for p in progress.glob("*/*/about.json")]
    assert sorted(done) == ["", "", ".part"]  # two matrices, and one that never counts
    assert not (killed / "out").exists()
    assert run(killed, "gptq") == 0
    one, other = ((folder / "out" / "model.onnx").read_bytes() for folder in (whole, killed))
    assert one == other
    assert not progress.exists()
