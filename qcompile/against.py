"""A quantized model of any tool held against a target: its table, and its library where installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcompile.backends.legality import REFUSED, Illegal, check_legality
from qcompile.backends.ort import open_session
from qcompile.backends.trt import build_engine
from qcompile.backends.trt_library import find_library
from qcompile.data.inputs import input_specs, random_feeds
from qcompile.ir.errors import QCompileError
from qcompile.ir.load import load_model
from qcompile.ir.target import Target
from qcompile.profiles import shape_profile

__all__ = ["Against", "hold_against"]


@dataclass(frozen=True)
class Against:
    """What a target makes of a model.

    Attributes:
        found: what its table refuses or runs in float only.
        library: what its library says: refused (the reason), or "".
        tried: what was really tried, one clause.
        pairs: QuantizeLinear and DequantizeLinear nodes looked at.
    """

    found: tuple[Illegal, ...]
    library: str
    tried: str
    pairs: int

    @property
    def refused(self) -> bool:
        """Whether the target does not take the model as it is."""
        return bool(self.library) or any(r.effect == REFUSED for r in self.found)


def hold_against(path: Path, target: Target, custom_ops: Path | None = None) -> Against:
    """Hold a model against a target.

    Raises:
        ModelError: no valid ONNX model.
    """
    model = load_model(path).model
    found = check_legality(model, target)
    pairs = sum(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph)
    if not target.portable:
        try:
            open_session(path, custom_ops=custom_ops)
        except QCompileError as e:
            return Against(found, str(e), "opened with ONNX Runtime", pairs)
        return Against(found, "", "opened with ONNX Runtime", pairs)
    library = find_library(ahead_of_time=True)
    if library is None:
        tried = "by the table alone: tensorrt-rtx is not installed (pip install qcompile[tensorrt])"
        return Against(found, "", tried, pairs)
    wanted = next((f.upper() for f in target.features if f.startswith("sm")), "")
    able = library.capabilities()
    capability = wanted if wanted in able else "SM89" if "SM89" in able else next(iter(able), "")
    tried = f"built with {library.name} {library.version} for {capability}"
    feeds = [{k: v.shape for k, v in f.items()} for f in random_feeds(input_specs(model), 2)]
    try:
        build_engine(path, library, shape_profile(list(feeds)), capability)
    except QCompileError as e:
        return Against(found, str(e), tried, pairs)
    return Against(found, "", tried, pairs)
