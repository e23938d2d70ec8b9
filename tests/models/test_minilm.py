"""MiniLM's writer on small made-up weights, against the same network in numpy."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN, HEADS, INNER, VOCABULARY, LONGEST, LAYERS = 24, 12, 32, 50, 16, 2
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def minilm() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "models" / "minilm.py")))


@pytest.fixture(scope="module")
def weights() -> dict[str, npt.NDArray[np.float32]]:
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "embeddings.position_embeddings.weight": (LONGEST, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        sizes = {f"attention.self.{p}": (HIDDEN, HIDDEN) for p in ("query", "key", "value")}
        sizes["attention.output.dense"] = (HIDDEN, HIDDEN)
        sizes["intermediate.dense"] = (INNER, HIDDEN)
        sizes["output.dense"] = (HIDDEN, INNER)
        for name, size in sizes.items():
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (HIDDEN,), f"{at}.{name}.bias": (HIDDEN,)}
    random = np.random.default_rng(0)
    return {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def safetensors(weights: dict[str, npt.NDArray[np.float32]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in weights.items():
        span = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def reference(
    weights: dict[str, npt.NDArray[np.float32]],
    ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64],
) -> Array:
    """The encoder in float64, written from the paper and not from the ONNX graph."""
    w = {k: v.astype(np.float64) for k, v in weights.items()}

    def linear(x: Array, name: str) -> Array:
        product: Array = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return product

    def norm(x: Array, name: str) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (heads(linear(x, f"{at}.attention.self.{p}")) for p in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(HIDDEN / HEADS)
        scores = np.where(mask[:, None, None] > 0, scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        y = (attention @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(x + linear(y, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        y = linear(x, f"{at}.intermediate.dense")
        y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = norm(x + linear(y, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled: Array = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def test_the_graph_computes_the_network(
    minilm: SimpleNamespace, weights: dict[str, npt.NDArray[np.float32]]
) -> None:
    session = ort.InferenceSession(minilm.build(safetensors(weights)))
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (3, 9))
    mask = (np.arange(9) < np.array([[9], [5], [1]])).astype(np.int64)
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(found, reference(weights, ids, mask), rtol=1e-3, atol=1e-5)


def test_the_same_weights_give_the_same_bytes(
    minilm: SimpleNamespace, weights: dict[str, npt.NDArray[np.float32]]
) -> None:
    data = safetensors(weights)
    assert minilm.build(data) == minilm.build(data)
    prefixed = {f"bert.{name}": array for name, array in weights.items()}
    assert minilm.build(safetensors(prefixed)) == minilm.build(data)


def test_refusals(minilm: SimpleNamespace, weights: dict[str, npt.NDArray[np.float32]]) -> None:
    with pytest.raises(ValueError, match="safetensors"):
        minilm.build(b"\x80\x02 a pickle")
    some = {k: v for k, v in weights.items() if "position" not in k}
    with pytest.raises(ValueError, match="position_embeddings"):
        minilm.build(safetensors(some))
