"""Runs a built engine with polygraphy, NVIDIA's own runner: a second opinion on what an engine computes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.ir.errors import BackendMissingError

__all__ = ["run_polygraphy"]


def run_polygraphy(
    engine: Path, feeds: Sequence[Mapping[str, Any]], library: str
) -> tuple[str, list[dict[str, Any]]]:
    """Version of polygraphy, and the outputs for every feed.

    Args:
        engine: file of the engine.
        feeds: inputs by name.
        library: module that built it: "tensorrt" or "tensorrt_rtx".

    Raises:
        BackendMissingError: polygraphy, the library or a GPU is missing.
    """
    # polygraphy decides when it is imported which library it drives
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if library == "tensorrt_rtx" else "0"
    try:
        import polygraphy
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.exception import PolygraphyException
    except ImportError as e:
        raise BackendMissingError(
            f"polygraphy cannot be imported ({e}); `pip install polygraphy` brings it"
        ) from e
    found = []
    try:
        with TrtRunner(EngineFromBytes(engine.read_bytes())) as runner:
            for feed in feeds:
                outputs = runner.infer(feed_dict=dict(feed))
                # the runner writes the next outputs into the same buffers
                found.append({name: array.copy() for name, array in outputs.items()})
    # OSError: no CUDA; AttributeError: a lazily imported tensorrt that is not there
    except (PolygraphyException, OSError, RuntimeError, AttributeError) as e:
        text = " ".join(str(e).split())[:300]
        raise BackendMissingError(f"polygraphy cannot run the engine here: {text}") from e
    return str(polygraphy.__version__), found
