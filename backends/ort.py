"""Sessions of ONNX Runtime: what is installed, what it can open, how a model is opened and run."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qcompile.ir.cache import CachePair, from_integers, read_pairs, to_integers
from qcompile.ir.errors import BackendMissingError, ModelError

# the processes that measure need no model in memory, which takes half a second to import
if TYPE_CHECKING:
    import onnx_ir as oir

__all__ = [
    "AS_WRITTEN",
    "CPU",
    "Feed",
    "Port",
    "Session",
    "check_runtime",
    "gpu_provider",
    "max_ir_version",
    "max_opset",
    "open_session",
    "runtime_version",
    "saved_optimized",
    "type_name",
]

Feed = Mapping[str, Any]
"""Input name -> array."""

AS_WRITTEN = {"session.disable_quant_qdq": "1"}
"""ONNX Runtime's Q/DQ rules change what a Q/DQ graph computes: they quantize biases, float weights."""

BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Distributions that all install the one module ``onnxruntime`` and so overwrite each other."""

CPU = "CPUExecutionProvider"
GPU_PROVIDERS = ("CUDAExecutionProvider", "DmlExecutionProvider", "ROCMExecutionProvider")

# sequences, maps and optionals have no single numpy dtype: they are not in this table
_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


def check_runtime() -> None:
    """Make sure that exactly one build of ONNX Runtime is installed, without importing it.

    Raises:
        BackendMissingError: none is installed, or two builds share (and overwrite) one folder.
    """
    found = []
    for name in BUILDS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        keep = next(name for name in reversed(BUILDS) if name in found)
        raise BackendMissingError(
            f"{' and '.join(found)} are both installed and overwrite each other's files; keep one: "
            f"`pip uninstall -y {' '.join(found)}`, then `pip install {BUILDS[0]}` (CPU) "
            f"or `pip install {keep}`"
        )
    if not found and importlib.util.find_spec("onnxruntime") is None:
        raise BackendMissingError(
            "ONNX Runtime is not installed; one of `pip install onnxruntime` (CPU) "
            "or `pip install onnxruntime-gpu` (NVIDIA GPU, works on the CPU too) is needed"
        )


def _runtime() -> Any:
    """The module, imported on first use so that ``import qcompile`` stays cheap."""
    try:
        import onnxruntime
    except ImportError as e:
        check_runtime()
        raise BackendMissingError(
            f"ONNX Runtime is installed but cannot be imported ({e}); "
            "reinstall it: `pip install --force-reinstall onnxruntime`"
        ) from e
    return onnxruntime


def runtime_version() -> str:
    """Version of the installed ONNX Runtime, as "1.31.0"."""
    return str(_runtime().__version__)


def type_name(dtype: oir.DataType | None) -> str:
    """A tensor's type as ONNX Runtime writes it, "tensor(float)"."""
    wanted = None if dtype is None else np.dtype(dtype.numpy())
    return next((name for name, one in _DTYPES.items() if np.dtype(one) == wanted), "")


@dataclass(frozen=True)
class Port:
    """An input or output of a session.

    Attributes:
        name: as in the model.
        type: as ONNX Runtime writes it, "tensor(float)", "seq(tensor(int64))", ...
        shape: one entry a dimension: a number, a symbol, or None where nothing is known.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def dtype(self) -> npt.DTypeLike | None:
        """The numpy dtype (object for strings), None for what is no plain tensor."""
        found: npt.DTypeLike | None = _DTYPES.get(self.type)
        return found


class Session:
    """An opened model: feeds in, named outputs out.

    A cache of keys and values in 8 bits is float at this face, so that it compares with the float model and
    can be rolled back in (which loses nothing: the same integers come out). ``raw`` has it as it is.

    Attributes:
        raw: the ``onnxruntime.InferenceSession``.
        inputs: in the model's order.
        outputs: in the model's order.
        cache: what is float at this face alone.
    """

    cache: tuple[CachePair, ...] = ()
    _past: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({})
    _present: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType({})

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.cache = read_pairs(raw.get_modelmeta().custom_metadata_map)
        self._past = {pair.past: pair.scale for pair in self.cache}
        self._present = {pair.present: pair.scale for pair in self.cache}
        self.inputs: tuple[Port, ...] = _ports(raw.get_inputs(), self._past)
        self.outputs: tuple[Port, ...] = _ports(raw.get_outputs(), self._present)
        self._names = [port.name for port in self.outputs]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs by name (arrays; lists and dicts for sequences and maps).

        Raises:
            ModelError: ONNX Runtime refused the feed or failed inside a node, which is named.
        """
        found = self.run_raw(self.given(feed), outputs)
        for name in found.keys() & self._present.keys():
            found[name] = from_integers(found[name], self._present[name])
        return found

    def run_raw(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The same without the face: types as the file has them.

        Raises:
            ModelError: as ``run``.
        """
        names = self._names if outputs is None else list(outputs)
        try:
            values = self.raw.run(names, dict(feed))
        except Exception as e:
            raise ModelError(f"ONNX Runtime failed while running the model: {one_line(e)}") from e
        return dict(zip(names, values, strict=True))

    def given(self, feed: Feed) -> dict[str, Any]:
        """A feed as the file wants it: caches in integers, where they are not already."""
        found = dict(feed)
        for name in found.keys() & self._past.keys():
            if np.asarray(found[name]).dtype != np.int8:
                found[name] = to_integers(found[name], self._past[name])
        return found

    def end_profiling(self) -> Path:
        """Stop profiling; the path of the trace that was written."""
        return Path(self.raw.end_profiling())


def _ports(raw: Sequence[Any], cached: Mapping[str, Any]) -> tuple[Port, ...]:
    found = (Port(r.name, r.type, tuple(r.shape or ())) for r in raw)
    return tuple(replace(p, type="tensor(float)") if p.name in cached else p for p in found)


def open_session(
    model: Path | str | bytes,
    *,
    threads: int | None = None,
    optimize: bool = True,
    spinning: bool = False,
    custom_ops: Path | str | None = None,
    variable_shapes: bool = False,
    keep_arena: bool = False,
    profile: Path | str | None = None,
    save_optimized: Path | str | None = None,
    config: Mapping[str, str] | None = None,
    provider: str = CPU,
    provider_options: Mapping[str, str] | None = None,
) -> Session:
    """Open a model on one of ONNX Runtime's providers.

    Args:
        model: path, or the bytes of a model without external data.
        threads: threads inside an operator; None leaves ONNX Runtime's choice (all cores).
        optimize: all graph optimizations, else none.
        spinning: let idle threads spin, as ONNX Runtime does by default; sessions that spin steal
            each other's cores, so it is off here unless asked for.
        custom_ops: library with custom operators.
        variable_shapes: give memory back between runs instead of keeping each shape's peak.
        keep_arena: with variable shapes, let the allocator keep its blocks between runs (a third
            faster on large images); its peak is then that of the largest feed.
        profile: prefix of a trace to write; `Session.end_profiling` ends it.
        save_optimized: where to write the graph after optimizations.
        config: further session options, key -> value ("session.disable_quant_qdq": "1").
        provider: what executes; nodes that it cannot run go to the CPU.
        provider_options: of that provider.

    Raises:
        ModelError: the file is missing, or ONNX Runtime refuses it; names the node where it does.
        BackendMissingError: ONNX Runtime or the provider is missing.
    """
    ort = _runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it would print is in the exception
    if threads is not None:
        options.intra_op_num_threads = threads
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if variable_shapes:
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = keep_arena
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if save_optimized is not None:
        options.optimized_model_filepath = str(save_optimized)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if custom_ops is not None:
        _register(options, Path(custom_ops))
    if isinstance(model, bytes):
        source: str | bytes = model
    else:
        source = str(model)
        if not Path(model).is_file():
            raise ModelError(f"model '{model}' is no file; give the path of an .onnx file")
    providers: list[Any] = list(dict.fromkeys((provider, CPU)))
    if provider_options:
        providers[0] = (provider, dict(provider_options))
    able = ort.get_available_providers()
    if provider not in able:
        raise BackendMissingError(f"ONNX Runtime has no {provider} here, only {', '.join(able)}")
    try:
        raw = ort.InferenceSession(source, options, providers=providers)
    except Exception as e:
        raise ModelError(f"ONNX Runtime {ort.__version__} refuses it: {one_line(e)}") from e
    # a provider that cannot start falls back to the CPU without a word
    if provider not in raw.get_providers():
        raise BackendMissingError(
            f"{provider} does not start here: the session runs on {', '.join(raw.get_providers())}"
        )
    return Session(raw)


def _register(options: Any, library: Path) -> None:
    if not library.is_file():
        raise ModelError(f"custom operators '{library}' do not exist; give the path of the library")
    try:
        options.register_custom_ops_library(str(library.resolve()))
    except Exception as e:
        raise ModelError(f"custom operators '{library}' cannot be loaded: {one_line(e)}") from e


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (?P<code>\w+) : ")
_LOAD = re.compile(r"^Load model from .*? failed:\s*")
_SOURCE = re.compile(r"^\S*\.(?:cc|h|cpp):\d+ .*?(?=\S+ was false|Non-zero|Exception|\[)")
# In Node, ("name", Op, "domain", -1) : ("input": type, ...) -> ("output",) , Error text
_IN_NODE = re.compile(r'In Node, \("(?P<name>[^"]*)", (?P<op>\w+), .*?\) , Error (?P<text>.*)$')


def one_line(error: BaseException | str) -> str:
    """ONNX Runtime's message as one line, the node first, without paths and argument lists."""
    text = " ".join(str(error).split())
    text = _PREFIX.sub("", text)
    text = _LOAD.sub("", text)
    text = re.sub(r"^This is an invalid model\.\s*", "", text)
    found = _IN_NODE.search(text)
    if found:
        text = f"node '{found['name']}' ({found['op']}): {found['text']}"
    text = _SOURCE.sub("", text)
    return text if len(text) <= 400 else text[:397] + "..."


@functools.cache
def gpu_provider() -> str | None:
    """The provider that runs models on a GPU of this machine, None where none starts."""
    able = _runtime().get_available_providers()
    for name in GPU_PROVIDERS:
        if name not in able:
            continue
        try:
            open_session(_probe(opset=13, ir_version=8), provider=name)
        except (ModelError, BackendMissingError):
            continue
        return name
    return None


@functools.cache
def max_opset() -> int:
    """Newest version of the default operator set that the installed runtime opens."""
    return _newest(start=21, opens=lambda n: _opens(_probe(opset=n, ir_version=8)))


@functools.cache
def max_ir_version() -> int:
    """Newest ONNX IR version that the installed runtime opens."""
    return _newest(start=10, opens=lambda n: _opens(_probe(opset=13, ir_version=n)))


def _newest(start: int, opens: Any) -> int:
    found = start
    while found > 1 and not opens(found):
        found -= 1
    while opens(found + 1):
        found += 1
    return found


def _opens(model: bytes) -> bool:
    try:
        open_session(model, threads=1)
    except ModelError:
        return False
    return True


def _probe(opset: int, ir_version: int) -> bytes:
    """A one-node model to try to open: no table of limits ships with the runtime."""
    import onnx
    from onnx import helper

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", [value("x")], [value("y")]
    )
    model = onnx.ModelProto(ir_version=ir_version, graph=graph)
    model.opset_import.add(domain="", version=opset)
    return bytes(model.SerializeToString())


def saved_optimized(model: Path, out: Path, *, custom_ops: Path | None = None) -> Path:
    """Write the graph as ONNX Runtime executes it (all optimizations) to ``out``."""
    open_session(model, threads=1, custom_ops=custom_ops, save_optimized=out)
    return out
