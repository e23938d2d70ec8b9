"""Models as text, loaded and run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as oir
import onnxruntime as ort
from onnx import parser

from qcompile.ir.load import Loaded
from qcompile.ir.save import model_bytes

Array = npt.NDArray[np.generic]


def parse(text: str, opset: int = 17, ir: int = 8, imports: str = "") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>\n{text}')


def texts(loaded: Loaded) -> str:
    return "; ".join(n.text for n in loaded.notes)


def ops(model: oir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def run(model: onnx.ModelProto | oir.Model, feed: dict[str, Array]) -> list[Array]:
    data = model_bytes(model) if isinstance(model, oir.Model) else model.SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return list(ort.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, feed))


def same(a: onnx.ModelProto, b: oir.Model, feed: dict[str, Array]) -> None:
    for x, y in zip(run(a, feed), run(b, feed), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)


X = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)
