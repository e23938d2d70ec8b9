"""Builds engines from strongly typed ONNX with whichever TensorRT is installed.

Precision stands in the graph, so no precision flag is ever set, and one path serves TensorRT 10, 11
and TensorRT for RTX. The latter builds for GPUs that are not here ("ahead of time"): the graph is
parsed and every kernel chosen, but nothing runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.backends.trt_layers import EngineLayer, read_layers
from qcompile.backends.trt_library import Library
from qcompile.ir.errors import TargetError

__all__ = ["EngineBuild", "Profile", "build_engine"]

Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Input name -> least, typical and largest shape."""


@dataclass(frozen=True)
class EngineBuild:
    """A built engine.

    Attributes:
        library: name and version of what built it.
        capability: GPU generation it is for ("SM89"), "" for the GPU of this machine.
        engine: its bytes; they differ from build to build.
        layers: its kernels.
        seconds: time of the build.
        warnings: what the library warned about.
    """

    library: str
    capability: str
    engine: bytes
    layers: tuple[EngineLayer, ...]
    seconds: float
    warnings: tuple[str, ...]


def build_engine(
    model: Path, library: Library, profile: Profile, capability: str = ""
) -> EngineBuild:
    """Parse a model and build its engine.

    Args:
        model: ONNX file, external data beside it.
        library: what to build with.
        profile: shapes of the inputs that are dynamic.
        capability: build ahead of time for this generation ("SM89"); "" builds for this GPU.

    Raises:
        TargetError: the parser or the builder refuses, in its own words and with our node's name.
    """
    start = time.perf_counter()
    api = library.api
    log = _make_log(api)
    builder = api.Builder(log)
    flags = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = api.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise TargetError(f"{library.name} {library.version} cannot parse: {_refusals(parser)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(api.ComputeCapability, capability), 0)
    _add_profile(builder, network, config, profile)
    engine = builder.build_serialized_network(network, config)
    where = f" for {capability}" if capability else ""
    if engine is None:
        raise TargetError(
            f"{library.name} {library.version} cannot build this model{where}: {log.reason()}"
        )
    return EngineBuild(
        f"{library.name} {library.version}",
        capability,
        bytes(engine),
        read_layers(log.messages()),
        time.perf_counter() - start,
        log.warnings(),
    )


def _make_log(api: Any) -> Any:
    base: Any = api.ILogger

    class Log(base):  # type: ignore[misc]
        """Keeps every message; prints none."""

        def __init__(self) -> None:
            base.__init__(self)
            self.lines: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((int(severity), message))

        def messages(self) -> list[str]:
            return [message for _, message in self.lines]

        def reason(self) -> str:
            errors = [m for s, m in self.lines if s <= int(base.ERROR)]
            return " ".join((errors or ["no reason was given"])[0].split())

        def warnings(self) -> tuple[str, ...]:
            found = [m for s, m in self.lines if s == int(base.WARNING)]
            return tuple(dict.fromkeys(" ".join(m.split()) for m in found))

    return Log()


def _refusals(parser: Any) -> str:
    """Every error of the parser, with node and operator."""
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # Older bindings know no node name.
        node = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
        kind = error.node_operator() if hasattr(error, "node_operator") else "operator"
        texts.append(f"node '{node}' ({kind}): {' '.join(error.desc().split())}")
    return "; ".join(dict.fromkeys(texts)) or "no reason was given"


def _add_profile(builder: Any, network: Any, config: Any, shapes: Profile) -> None:
    dynamic = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor for tensor in dynamic if any(d < 0 for d in tensor.shape)]
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        if tensor.name not in shapes:
            raise TargetError(
                f"input '{tensor.name}' has the dynamic shape {tuple(tensor.shape)} and no profile; "
                "calibration data give one"
            )
        low, typical, high = (tuple(int(d) for d in shape) for shape in shapes[tensor.name])
        profile.set_shape(tensor.name, low, typical, high)
    config.add_optimization_profile(profile)
