"""A graph-level quantization compiler for ONNX: valid, measured, explained.

``qcompile.compile("model.onnx", calibration=batches)`` returns a ``CompileResult``.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from qcompile.backends.ort import check_runtime
from qcompile.ir.errors import BackendMissingError

if TYPE_CHECKING:
    from qcompile.compiler import compile
    from qcompile.ir.errors import QCompileError
    from qcompile.ir.plan import LayerChoice, PrecisionPlan
    from qcompile.report import CompileReport
    from qcompile.result import CompileResult, load

__all__ = [
    "CompileReport",
    "CompileResult",
    "LayerChoice",
    "PrecisionPlan",
    "QCompileError",
    "compile",
    "load",
]

_HOMES = {
    "CompileReport": "qcompile.report",
    "CompileResult": "qcompile.result",
    "LayerChoice": "qcompile.ir.plan",
    "PrecisionPlan": "qcompile.ir.plan",
    "QCompileError": "qcompile.ir.errors",
    "compile": "qcompile.compiler",
    "load": "qcompile.result",
}

try:
    check_runtime()
except BackendMissingError as e:  # every use raises it; the command line says it in one line
    warnings.warn(str(e), RuntimeWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import qcompile` stays quick."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qcompile' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(home), name)
