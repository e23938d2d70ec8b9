"""Finish this artifact on the device: build, verify, time. Needs Python 3.8+, numpy and tensorrt.

usage: device.py [--float FLOAT.onnx] [--fp16 FP16.onnx] [--seconds N] [--json device.json]
                 [--workspace MIB] [--min-sqnr DB] [--cache FOLDER]
                 [--refit] [--sparsity] [--version-compatible]

Builds an engine of ../model.qdq.onnx, runs the stored samples, compares with what ONNX Runtime
computed from the same graph, times it beside engines of the float and the half-precision model where
they are given (or lie here as float.onnx and fp16.onnx), and writes the verdict of this device.
Engines and timings are kept in --cache (by default engines/ here) and used again for equal models,
library, GPU and flags.
Exit code: 0 delivered, 3 not delivered, 4 no TensorRT or no GPU.
"""

import argparse
import ctypes
import ctypes.util
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "model.qdq.onnx"


def library() -> Any:
    """TensorRT, or TensorRT for RTX where only that is installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            found = __import__(name)
        except (ImportError, OSError, RuntimeError):
            continue
        if hasattr(found, "Builder"):
            return found
    return None


class Cuda:
    """The few calls of the CUDA runtime that are needed, through ctypes."""

    def __init__(self) -> None:
        names = [ctypes.util.find_library("cudart"), "libcudart.so"]
        names += ["libcudart.so.%d" % n for n in (13, 12, 11)]
        names += sorted(map(str, Path("/usr/local").glob("cuda*/lib64/libcudart.so*")))
        for base in sys.path:
            names += map(str, Path(base).glob("nvidia/*/lib/libcudart.so*"))
        names += ["cudart64_13.dll", "cudart64_12.dll", "cudart64_110.dll"]
        self.api: Any = None
        for name in filter(None, names):
            try:
                self.api = ctypes.CDLL(name)
                break
            except OSError:
                continue
        if self.api is None:
            raise OSError("the CUDA runtime (libcudart) was not found")
        pointer = ctypes.c_void_p
        self.api.cudaMemcpy.argtypes = [pointer, pointer, ctypes.c_size_t, ctypes.c_int]
        count = ctypes.c_int(0)
        code = self.api.cudaGetDeviceCount(ctypes.byref(count))
        if code or count.value < 1:
            raise OSError("none, or its driver is too old (CUDA says %d)" % code)

    def describe(self) -> str:
        """The GPU's name and compute capability: engines hold for these alone."""
        parts, value = [], ctypes.c_int(0)
        for attribute in (75, 76):  # cudaDevAttrComputeCapabilityMajor, ...Minor
            code = self.api.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0)
            self.check(code, "cudaDeviceGetAttribute")
            parts.append(str(value.value))
        properties = ctypes.create_string_buffer(4096)  # begins with char name[256]
        find = getattr(self.api, "cudaGetDeviceProperties_v2", None)
        find = find or self.api.cudaGetDeviceProperties
        self.check(find(properties, 0), "cudaGetDeviceProperties")
        name = properties.raw[:256].split(b"\0", 1)[0].decode(errors="replace")
        return "%s, compute capability %s" % (name, ".".join(parts))

    def check(self, code: int, what: str) -> None:
        """Raise where a call failed."""
        if code != 0:
            raise OSError("%s failed with CUDA error %d" % (what, code))

    def allocate(self, size: int) -> int:
        """Device memory of so many bytes."""
        pointer = ctypes.c_void_p()
        size = max(size, 1)
        self.check(self.api.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)), "cudaMalloc")
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self.check(self.api.cudaFree(ctypes.c_void_p(pointer)), "cudaFree")

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        """Copy bytes; kind 1 is to the device, 2 from it."""
        self.check(self.api.cudaMemcpy(to, source, size, kind), "cudaMemcpy")

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self.check(self.api.cudaStreamCreate(ctypes.byref(handle)), "cudaStreamCreate")
        return int(handle.value or 0)

    def wait(self, stream: int) -> None:
        """Wait for everything in a stream."""
        self.check(self.api.cudaStreamSynchronize(ctypes.c_void_p(stream)), "cudaStreamSynchronize")


def samples(name: str) -> List[Dict[str, Any]]:
    """Stored arrays: sample number -> {tensor name: array}."""
    with np.load(str(HERE / name)) as stored:
        names = json.loads(bytes(stored["names"]).decode())
        count = int(stored["count"])
        return [{n: stored["%d_%d" % (i, j)] for j, n in enumerate(names)} for i in range(count)]


FLAGS = {"refit": "REFIT", "sparsity": "SPARSE_WEIGHTS", "version_compatible": "VERSION_COMPATIBLE"}
"""Our option -> TensorRT's builder flag."""


def cache_key(trt: Any, path: str, shapes: Any, args: Any, gpu: str) -> str:
    """Changes with anything that an engine depends on: model, library, GPU, shapes, flags.

    The bytes of an engine differ from build to build, so what goes in is hashed, never what came out.
    """
    digest = hashlib.sha256()
    for part in sorted(Path(path).parent.glob(Path(path).name + "*")):
        digest.update(part.read_bytes())  # external data lie beside the model
    asked = {name: getattr(args, name) for name in sorted(FLAGS)}
    asked["workspace"] = args.workspace
    text = [trt.__name__, str(trt.__version__), gpu, shapes, asked]
    digest.update(json.dumps(text, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def built(trt: Any, path: str, shapes: Dict[str, List[List[int]]], args: Any, gpu: str) -> Any:
    """An engine from the cache, else one that is built and put there."""
    folder = Path(args.cache)
    place = folder / (cache_key(trt, path, shapes, args, gpu) + ".engine")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    if args.version_compatible and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    if place.is_file():
        data = place.read_bytes()
        engine = runtime.deserialize_cuda_engine(data)
        if engine is not None:
            print("%s: engine from the cache" % Path(path).name)
            return runtime, engine, data
    data = build(trt, path, shapes, args)
    folder.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise RuntimeError("TensorRT cannot open the engine that it built of %s" % path)
    return runtime, engine, data


def build(trt: Any, path: str, shapes: Dict[str, List[List[int]]], args: Any) -> bytes:
    """An engine of an ONNX file for this GPU, strongly typed: the graph says every precision."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise RuntimeError("TensorRT cannot parse %s: %s" % (path, "; ".join(errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if args.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, args.workspace << 20)
    for name, flag in FLAGS.items():
        if not getattr(args, name):
            continue
        if not hasattr(trt.BuilderFlag, flag):
            raise RuntimeError("--%s: this TensorRT has no %s" % (name.replace("_", "-"), flag))
        config.set_flag(getattr(trt.BuilderFlag, flag))
    timings = Path(args.cache) / "timings.cache"
    timing = None
    if hasattr(config, "create_timing_cache"):
        timing = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        # False: timings of another GPU or version are not taken
        config.set_timing_cache(timing, False)
    profile = builder.create_optimization_profile()
    dynamic = False
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if any(d < 0 for d in tensor.shape):
            dynamic = True
            if tensor.name not in shapes:
                raise RuntimeError("input %s is dynamic and has no shapes" % tensor.name)
            low, typical, high = (tuple(s) for s in shapes[tensor.name])
            profile.set_shape(tensor.name, low, typical, high)
    if dynamic:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT cannot build %s; its messages are above" % path)
    if timing is not None:
        timings.parent.mkdir(parents=True, exist_ok=True)
        timings.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


class Engine:
    """An engine with buffers for one feed."""

    def __init__(self, trt: Any, cuda: Cuda, built: Any) -> None:
        self.trt, self.cuda = trt, cuda
        self.runtime, self.engine, self.data = built
        self.context = self.engine.create_execution_context()
        self.stream = cuda.stream()
        self.held: Dict[str, Tuple[int, int]] = {}

    def names(self, inputs: bool) -> List[str]:
        """Names of inputs or outputs."""
        mode = self.trt.TensorIOMode.INPUT if inputs else self.trt.TensorIOMode.OUTPUT
        all_names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        return [n for n in all_names if self.engine.get_tensor_mode(n) == mode]

    def _buffer(self, name: str, size: int) -> int:
        pointer, have = self.held.get(name, (0, -1))
        if size > have:
            if pointer:
                self.cuda.free(pointer)
            pointer = self.cuda.allocate(size)
            self.held[name] = (pointer, size)
        self.context.set_tensor_address(name, pointer)
        return pointer

    def feed(self, arrays: Dict[str, Any]) -> None:
        """Copy inputs to the device and prepare the outputs."""
        for name in self.names(True):
            wanted = np.dtype(self.trt.nptype(self.engine.get_tensor_dtype(name)))
            array = np.ascontiguousarray(arrays[name], dtype=wanted)
            self.context.set_input_shape(name, tuple(array.shape))
            pointer = self._buffer(name, array.nbytes)
            self.cuda.copy(pointer, array.ctypes.data, array.nbytes, 1)
        self.outputs: Dict[str, Any] = {}
        for name in self.names(False):
            shape = tuple(self.context.get_tensor_shape(name))
            if any(d < 0 for d in shape):
                raise RuntimeError("output %s has a shape that depends on data" % name)
            dtype = self.trt.nptype(self.engine.get_tensor_dtype(name))
            self.outputs[name] = np.empty(shape, dtype)
            self._buffer(name, self.outputs[name].nbytes)

    def execute(self) -> None:
        """Run once and wait."""
        if not self.context.execute_async_v3(self.stream):
            raise RuntimeError("the engine could not be executed; TensorRT's messages are above")
        self.cuda.wait(self.stream)

    def run(self, arrays: Dict[str, Any]) -> Dict[str, Any]:
        """Outputs for one feed."""
        self.feed(arrays)
        self.execute()
        for name, array in self.outputs.items():
            self.cuda.copy(array.ctypes.data, self.held[name][0], array.nbytes, 2)
        return {name: array.copy() for name, array in self.outputs.items()}


def sqnr(reference: Any, outputs: Any, kinds: Any = (), leeway: float = 0.0) -> float:
    """Least SQNR in dB over float outputs; kinds (output, axis, channels) may be ``leeway`` below."""
    worst = float("inf")
    names = [n for n in reference[0] if n in outputs[0] and reference[0][n].dtype.kind == "f"]
    parts: List[Any] = [(n, ..., 0.0) for n in names]
    parts += [(n, (slice(None),) * a + (c,), leeway) for n, a, c in kinds if n in names]
    for name, index, more in parts:
        both = ([x[name][index] for x in xs] for xs in (reference, outputs))
        real, got = (np.concatenate([x.ravel() for x in xs]).astype(np.float64) for xs in both)
        signal, noise = float((real**2).sum()), float(((real - got) ** 2).sum())
        if not np.isfinite(noise):
            return -200.0
        if signal > 0 and noise > 0:
            worst = min(worst, 10 * float(np.log10(signal / noise)) + more)
    return worst


def interleaved(engines: Dict[str, Engine], seconds: float) -> Dict[str, float]:
    """Median milliseconds of each engine, run in turn, without copies to and from the device."""
    times: Dict[str, List[float]] = {name: [] for name in engines}
    for name in list(engines) * 10:
        engines[name].execute()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 20:
        for name, engine in engines.items():
            engine.execute()
            start = time.perf_counter()
            engine.execute()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(t)) for name, t in times.items()}


def types_read(layer: Any) -> str:
    """Types of a layer's inputs, constants and weights, in one string."""
    held = [layer.get(key) or [] for key in ("Inputs", "Constants", "Weights")]
    entries = [e for h in held for e in (h if isinstance(h, list) else [h])]
    return " ".join(str(e.get("Format/Datatype", e.get("Type"))) for e in entries).lower()


def realised(trt: Any, engine: Any) -> Dict[str, int]:
    """Kernels of the engine by the type of what they read, as the inspector tells."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    counts: Dict[str, int] = {}
    for layer in json.loads(text).get("Layers", []):
        words = types_read(layer) if isinstance(layer, dict) else ""
        kind = next((k for k in ("fp4", "int4", "fp8", "int8") if k in words), "other")
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def finish(args: Any, trt: Any, cuda: Cuda) -> int:
    """Build, compare, time, write; the exit code."""
    spec = json.loads((HERE / "device_spec.json").read_text(encoding="utf-8"))
    feeds, stored, exact = (samples(n + ".npz") for n in ("sample_in", "sample_out", "float_out"))
    limit = spec["min_sqnr"] if args.min_sqnr is None else args.min_sqnr
    gpu, own = cuda.describe(), spec["precision"]
    made = built(trt, str(MODEL), spec["shapes"], args, gpu)
    (HERE.parent / "model.engine").write_bytes(made[2])
    engines = {own: Engine(trt, cuda, made)}
    outputs = [engines[own].run(feed) for feed in feeds]
    kinds, leeway = spec.get("kinds", ()), max(0.0, limit - 10.0)  # 10 dB of each kind of channels
    agreement, accuracy = sqnr(stored, outputs), sqnr(exact, outputs, kinds, leeway)
    print("agrees with the Q/DQ graph in ONNX Runtime to %.1f dB" % agreement)
    print("agrees with the float model to %.1f dB (%.1f dB needed)" % (accuracy, limit))
    others = {"fp16": args.fp16, "bf16": str(HERE / "bf16.onnx"), "float": args.original}
    for name, path in others.items():
        if name != own and Path(path).is_file():
            engines[name] = Engine(trt, cuda, built(trt, path, spec["shapes"], args, gpu))
    for engine in engines.values():
        engine.feed(feeds[0])
    times = interleaved(engines, args.seconds)
    for name, ms in times.items():
        print("%s: %.3f ms p50" % (name, ms))
    base = next((name for name in others if name in times and name != own), "")
    ratio = times[base] / times[own] if base else None
    good = accuracy >= limit and (ratio is None or ratio >= spec["min_speedup"])
    word = "not delivered" if not good else "delivered" if base else "not measured"
    verdict = {
        "verdict": word,
        "accuracy_db": accuracy if np.isfinite(accuracy) else None,
        "agreement_db": agreement if np.isfinite(agreement) else None,
        "min_sqnr": limit,
        "p50_ms": times,
        "speedup": ratio,
        "baseline": base,
        "kernels": realised(trt, engines[own].engine),
        "tensorrt": str(trt.__version__),
        "library": trt.__name__,
        "machine": platform.machine(),
        "gpu": gpu,
        "model": spec["model"],
    }
    Path(args.result).write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    figures = "" if ratio is None else ": %.2fx the speed of %s on this GPU" % (ratio, base)
    print(word.upper() + figures)
    return 0 if good else 3


def main() -> int:
    """Read the arguments and find library and GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--float", dest="original", default=str(HERE / "float.onnx"))
    parser.add_argument("--fp16", default=str(HERE / "fp16.onnx"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workspace", type=int, default=0, help="MiB; 0 leaves TensorRT's choice")
    parser.add_argument("--min-sqnr", type=float, default=None)
    parser.add_argument("--cache", default=str(HERE / "engines"), help="folder of engines")
    parser.add_argument("--refit", action="store_true", help="weights can be replaced later")
    parser.add_argument("--sparsity", action="store_true", help="use 2:4 sparse kernels")
    parser.add_argument("--version-compatible", action="store_true", help="for later TensorRT too")
    parser.add_argument("--json", dest="result", default="device.json")
    args = parser.parse_args()
    trt = library()
    if trt is None:
        print("no TensorRT here: install tensorrt or tensorrt_rtx", file=sys.stderr)
        return 4
    try:
        cuda = Cuda()
    except OSError as e:
        print("no usable GPU here: %s" % e, file=sys.stderr)
        return 4
    try:
        return finish(args, trt, cuda)
    except RuntimeError as e:
        print("NOT DELIVERED: %s" % e, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
