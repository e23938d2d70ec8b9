"""Data that a model's input was not made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as oir
import onnxruntime as ort
from onnx import numpy_helper

from qcompile.data.plausible import doubts

RNG = np.random.default_rng(0)

PLAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 8, 8] image) => (float[1, 4, 6, 6] y) { %s y = Conv(%s, w) }"""

NORMED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 8, 8] image) => (float[1, 4, 6, 6] y) {
    c = Conv(image, w)
    [bn] y = BatchNormalization(c, gamma, beta, mean, var)
}"""


def model(text: str, **arrays: np.ndarray) -> oir.Model:
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return oir.from_proto(onnx.shape_inference.infer_shapes(made))


def weight() -> np.ndarray:
    return RNG.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)


def pictures(scale: float, count: int = 4) -> list[dict[str, np.ndarray]]:
    whole = RNG.integers(0, 256, (count, 1, 3, 8, 8)).astype(np.float32)
    return [{"image": image * np.float32(scale)} for image in whole]


def test_whole_numbers_into_a_model_that_does_not_scale(tmp_path: Path) -> None:
    plain = model(PLAIN % ("", "image"), w=weight())
    (text,) = doubts(plain, pictures(1), tmp_path)
    assert "input 'image' holds whole numbers" in text and "divide by 255" in text
    assert doubts(plain, pictures(1 / 255), tmp_path) == ()


def test_a_model_that_scales_by_itself_is_content(tmp_path: Path) -> None:
    scaling = "k = Constant<value = float {255.0}>() t = Cast<to = 1>(image) s = Div(t, k)"
    assert doubts(model(PLAIN % (scaling, "s"), w=weight()), pictures(1), tmp_path) == ()


def test_one_picture_again_and_again(tmp_path: Path) -> None:
    plain = model(PLAIN % ("", "image"), w=weight())
    (text,) = doubts(plain, pictures(1 / 255, 1) * 4, tmp_path)
    assert text == "input 'image' is the same in all 4 samples that were looked at"


def normed() -> oir.Model:
    """Trained on pictures between 0 and 1."""
    w = weight()
    made = model(PLAIN % ("", "image"), w=w)
    session = ort.InferenceSession(oir.to_proto(made).SerializeToString())
    seen = np.concatenate([session.run(None, f)[0] for f in pictures(1 / 255, 32)])
    mean, var = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3))
    ones = np.ones(4, np.float32)
    return model(NORMED, w=w, gamma=ones, beta=0 * ones, mean=mean, var=var)


def test_batch_norms_know_what_training_saw(tmp_path: Path) -> None:
    trained = normed()
    assert doubts(trained, pictures(1 / 255), tmp_path) == ()
    told = doubts(trained, pictures(1.001), tmp_path)  # no whole numbers any more
    assert len(told) == 1 and "the data are unlike those of training" in told[0]
    assert "batch norm 'bn'" in told[0] and "--preprocess" in told[0]
