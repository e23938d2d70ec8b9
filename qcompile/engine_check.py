"""Whether a device's library takes the portable model, and what it makes of every layer.

With TensorRT for RTX installed the engine is really built, for the asked GPU generation or the nearest
that the library builds for; nothing is executed. Without it the question stays open, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as oir

from qcompile.backends.trt import EngineBuild, Profile, build_engine
from qcompile.backends.trt_layers import realised_precision
from qcompile.backends.trt_library import find_library
from qcompile.ir.errors import BackendMissingError, TargetError
from qcompile.ir.graph import origin
from qcompile.ir.plan import FLOAT, FP8, INT8, NVFP4, WEIGHTS, PrecisionPlan
from qcompile.ir.target import Target

__all__ = ["EngineCheck", "check_engine"]


@dataclass(frozen=True)
class EngineCheck:
    """What is known about the engine.

    Attributes:
        build: the engine that was built ahead of time, None without one.
        refused: why the library takes the model not at all.
        realised: origin id -> precision of its kernel; empty without a build.
        executed_as: origin id -> kinds of its kernels.
        reasons: origin id -> what stands in the engine instead of the kernel asked for.
        note: one sentence for the report.
    """

    build: EngineBuild | None
    refused: str
    realised: Mapping[str, str]
    executed_as: Mapping[str, list[str]]
    reasons: Mapping[str, str]
    note: str


def check_engine(
    path: Path, model: oir.Model, plan: PrecisionPlan, target: Target, profile: Profile
) -> EngineCheck:
    """Build ``path`` ahead of time where that is possible, and look at every layer of the plan."""
    library = find_library(ahead_of_time=True)
    if library is None:
        note = (
            "what the engine realises is not known: tensorrt-rtx, which builds ahead of time, is "
            "not installed (pip install qcompile[tensorrt])"
        )
        return EngineCheck(None, "", {}, {}, {}, note)
    wanted = next((f.upper() for f in target.features if f.startswith("sm")), "")
    capability = _nearest(wanted, library.capabilities())
    what = f"{library.name} {library.version} ahead-of-time build for {capability}"
    if capability != wanted:
        what += f" (in place of {wanted}, which it does not build for)"
    try:
        build = build_engine(path, library, profile, capability)
    except TargetError as e:
        return EngineCheck(None, str(e), {}, {}, {}, f"{what}: refused")
    except BackendMissingError as e:
        return EngineCheck(None, "", {}, {}, {}, f"{what}: {e}")
    kernels = [k for k in build.layers if k.kind not in ("signal", "wait")]
    note = f"{what}: {len(kernels)} kernels in {build.seconds:.1f} s; built, not executed"
    return _layers(build, model, plan, target.precision, note)


def _nearest(wanted: str, able: tuple[str, ...]) -> str:
    """The generation itself, else the newest one below it."""
    if wanted in able or not able:
        return wanted
    number = int(wanted[2:] or 0)
    below = [c for c in able if int(c[2:]) <= number]
    return max(below or able, key=lambda c: int(c[2:]))


def _layers(
    build: EngineBuild, model: oir.Model, plan: PrecisionPlan, form: str, note: str
) -> EngineCheck:
    choices = plan.by_origin()
    realised: dict[str, str] = {}
    executed: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for node in model.graph:
        name = origin(node) or ""
        if name not in choices or node.op_type != choices[name].op_type:
            continue
        kernels = [k for k in build.layers if (node.name or "") in k.nodes]
        executed[name] = list(dict.fromkeys(k.kind for k in kernels))
        found = realised_precision(build.layers, node.name or "")
        wanted = choices[name].precision
        if wanted != form and wanted not in WEIGHTS:
            realised[name] = found if found in (INT8, FP8, NVFP4) else FLOAT
        elif found == wanted or (node.op_type == "Add" and _reads_8_bits(build, node)):
            realised[name] = wanted
        else:
            realised[name] = FLOAT
            own = "; ".join(
                f"{k.kind} reading {', '.join((*k.inputs, *k.constants)) or 'nothing'}"
                for k in kernels
            )
            reasons[name] = f"the builder chose {own or 'no kernel of its own'}"
            if wanted in WEIGHTS:
                reasons[name] = (
                    "the builder makes its weight float in a kernel of its own: small in memory, "
                    "no faster than half precision"
                )
    return EngineCheck(build, "", realised, executed, reasons, note)


def _reads_8_bits(build: EngineBuild, node: oir.Node) -> bool:
    """A residual is 8-bit where a kernel that adds it reads 8 bits."""
    return any({"Int8", "FP8"} & {*k.inputs} for k in build.layers if (node.name or "") in k.nodes)
