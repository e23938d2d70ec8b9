"""Names that a console cannot show are no reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx

MODEL = """
<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}> {
  y = MatMul(x, w)
}
"""


def test_a_console_without_the_letters(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(MODEL)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "größe→"
    onnx.save(proto, tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "qcompile", "inspect", "m.onnx"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"gr\xf6\xdfe\u2192" in done.stdout
