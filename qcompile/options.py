"""Every option of a compile, in one frozen record that the command line, a TOML file and Python share."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qcompile.ir.errors import OptionError
from qcompile.oldest_runtime import parse_release
from qcompile.techniques import ALL, parse_techniques
from qcompile.units import Drop, parse_bytes, parse_drop, parse_milliseconds, parse_seconds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ALGORITHMS",
    "CACHES",
    "EFFORTS",
    "PREFERENCES",
    "REQUIREMENTS",
    "Options",
    "make_options",
    "read_toml",
]

EFFORTS = ("fast", "default", "max")
METHODS = ("auto", "minmax", "percentile", "entropy", "mse")
ALGORITHMS = ("auto", "rtn", "hqq", "awq", "gptq", "descent")
CACHES = ("float", "int8")
PREFERENCES = ("balance", "kernels", "layers")
REQUIREMENTS = ("real-data", "realised", "measured", "conclusive")


@dataclass(frozen=True)
class Options:
    """What was asked. Amounts are numbers here; ``make_options`` reads them from text with units.

    Attributes:
        target: capability table, see `qcompile targets`.
        device: row of devices; "native" is this machine.
        calibration: folder, file, script, iterable of feeds, or None (random data).
        preprocess: preset or recipe for images.
        samples: at most so many calibration samples; a diverse subset is chosen from more.
        method: range estimator, "auto" picks per tensor.
        ranges: a ranges.npz to reuse instead of calibrating, a TensorRT calibration cache, or JSON.
        metric: built-in name, "file.py:function", or a callable; None = SQNR.
        metric_direction: "max", "min", or None = as the metric says.
        eval_data: data for a built-in metric.
        labels: labels.csv for a built-in metric.
        slices: sample name -> slice; the worst slice is gated too.
        state: "OUTPUT=INPUT" of state that is carried over; () = as names suggest, "none" = none.
        steps: how many calls are judged where state is carried over; None = 16.
        max_drop: how much worse the metric may become.
        min_sqnr: least SQNR in dB of every float output; None = 10 without a metric, else off.
        min_speedup: least ratio to the float model under the runtime's own optimizations.
        max_latency: milliseconds, p50.
        max_size: bytes of the model file.
        output: folder; None = MODEL.TARGET/.
        force: move a foreign output folder aside.
        plan: a plan.json to follow.
        base: folder of an earlier compile whose plan and estimators are carried over (``--from``).
        keep_float: origin ids or patterns that stay in float.
        disable: names of passes to skip.
        techniques: what is done for accuracy, see ``qcompile.techniques``.
        threads: intra-op threads for costs and gate; None = the runtime's default.
        memory_limit: bytes.
        effort: "fast", "default" or "max". How long plans are searched for; with weights in few bits "fast"
            judges by 8 held-back samples and leaves out what the report shows beyond the verdict.
        seed: of everything random.
        allow_random: let random calibration data count as delivered, with a warning.
        custom_ops: a library with custom operators.
        fix_weights: take weights that are also graph inputs (overridable defaults) as constants;
            None = if all are, for then an exporter listed them.
        rest: type of what stays float, "fp16", "bf16" or "fp32"; None = as the target has it.
        prefer: for engines, where 8 bits cost a kernel: "kernels" leaves that float, "layers" makes
            8 bits of all that can be, "balance" is between.
        shapes: of inputs that must be served, "NAME=MIN:OPT:MAX"; () = those of the samples.
        opset: pin the default-domain opset of the result.
        min_ort: oldest ONNX Runtime that must open the result ("1.17").
        costs: a costs.json to use instead of measuring.
        search_time: seconds for the search of a plan.
        gate_time: seconds for timing in the gate.
        locked: replay qcompile.lock and fail if anything would change.
        lock: the lock file; None = qcompile.lock in the working or output folder.
        require: what must hold for exit code 0.
        strict: a layer that is not realised as requested is an error.
        tokenizer: tokenizer.json, which turns text files into samples.
        sequence: tokens of a sample that is cut from text.
        algorithm: how weights are rounded where activations stay float.
        bits: of these weights; None = the target's.
        block: of them that share a scale; None = the target's.
        kv_cache: how a decoder keeps keys and values, "float" or "int8"; weight-only targets.
        show: how the report reads outputs of the worst samples, see ``qcompile.report_data.show``.
        best_effort: when nothing quantized passes the gate, deliver the fused float model.
    """

    target: str = "ort-int8"
    device: str = "native"
    calibration: Any = None
    preprocess: str | None = None
    samples: int = 256
    method: str = "auto"
    ranges: Path | None = None
    metric: str | Callable[..., float] | None = None
    metric_direction: str | None = None
    eval_data: Any = None
    labels: Path | None = None
    slices: Mapping[str, str] | None = None
    state: tuple[str, ...] = ()
    steps: int | None = None
    max_drop: Drop | None = None
    min_sqnr: float | None = None
    min_speedup: float = 1.0
    max_latency: float | None = None
    max_size: int | None = None
    output: Path | None = None
    force: bool = False
    plan: Any = None
    base: Path | None = None
    keep_float: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ALL
    threads: int | None = None
    memory_limit: int | None = None
    effort: str = "default"
    seed: int = 0
    allow_random: bool = False
    custom_ops: Path | None = None
    fix_weights: bool | None = None
    rest: str | None = None
    prefer: str = "balance"
    shapes: tuple[str, ...] = ()
    opset: int | None = None
    min_ort: str | None = None
    costs: Path | None = None
    search_time: float | None = None
    gate_time: float = 20.0
    locked: bool = False
    lock: Path | None = None
    require: tuple[str, ...] = ()
    strict: bool = False
    show: str | Callable[..., Any] | None = None
    best_effort: bool = False
    tokenizer: Path | None = None
    sequence: int = 128
    algorithm: str = "auto"
    bits: int | None = None
    block: int | None = None
    kv_cache: str = "float"

    def uses(self, technique: str) -> bool:
        """Whether a technique is switched on; ``--disable`` knows them by name too."""
        return technique in self.techniques and technique not in self.disable


NAMES = tuple(f.name for f in fields(Options))
_PATHS = ("base", "ranges", "labels", "output", "custom_ops", "costs", "lock", "tokenizer")
_LISTS = ("state", "shapes", "keep_float", "disable", "require")
_READERS: dict[str, Callable[[str], object]] = {
    "max_drop": parse_drop,
    "max_latency": lambda t: parse_milliseconds(t, "--max-latency"),
    "max_size": lambda t: parse_bytes(t, "--max-size"),
    "memory_limit": lambda t: parse_bytes(t, "--memory-limit"),
    "search_time": lambda t: parse_seconds(t, "--search-time"),
    "gate_time": lambda t: parse_seconds(t, "--gate-time"),
}
_CHOICES: dict[str, Sequence[str]] = {
    "effort": EFFORTS,
    "method": METHODS,
    "metric_direction": ("max", "min"),
    "rest": ("fp16", "bf16", "fp32"),
    "prefer": PREFERENCES,
    "algorithm": ALGORITHMS,
    "kv_cache": CACHES,
}


def make_options(**given: Any) -> Options:
    """Options from keyword arguments; text is read with its unit, None means the default.

    Raises:
        OptionError: an unknown name (with the nearest), an unreadable or impossible value.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=2)
            raise OptionError(
                f"unknown option '{name}'"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        if value is None:
            continue
        if name in _CHOICES and value not in _CHOICES[name]:
            raise OptionError(
                f"--{name.replace('_', '-')} {value!r} is unknown; use {', '.join(_CHOICES[name])}"
            )
        values[name] = _read(name, value)
    options = Options(**values)
    _check(options)
    return options


def _read(name: str, value: Any) -> Any:
    if name in _READERS and isinstance(value, str):
        return _READERS[name](value)
    if name == "techniques":
        return parse_techniques(value)
    if name in _PATHS:
        return Path(value)
    if name in _LISTS:
        return (value,) if isinstance(value, str) else tuple(value)
    return value


def _check(options: Options) -> None:
    if options.min_ort is not None:
        parse_release(options.min_ort)
    for word in options.require:
        if word not in REQUIREMENTS:
            raise OptionError(f"--require {word} is unknown; use {', '.join(REQUIREMENTS)}")
    for name in ("samples", "steps", "threads", "sequence"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{name} {value} must be at least 1")
    if not options.min_speedup > 0:
        raise OptionError(
            f"--min-speedup {options.min_speedup} must be above 0 (1.0 = not slower than float)"
        )
    if options.base is not None and (options.plan is not None or options.ranges is not None):
        raise OptionError("--from carries plan and estimators over; leave --plan and --ranges out")
    if options.max_drop is not None and options.metric is None and options.tokenizer is None:
        raise OptionError("--max-drop needs a --metric to drop; without one use --min-sqnr (dB)")
    for name in ("ranges", "labels", "custom_ops", "costs", "tokenizer"):
        path = getattr(options, name)
        if path is not None and not path.is_file():
            raise OptionError(f"--{name.replace('_', '-')} '{path}' does not exist")


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a qcompile.toml; dashes and underscores are the same.

    Raises:
        OptionError: unreadable, or a key that is no option.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise OptionError(f"'{path}' cannot be read: {e}") from e
    values = {key.replace("-", "_"): value for key, value in content.items()}
    for key in values:
        if key not in (*NAMES, "model"):
            near = difflib.get_close_matches(key, NAMES, n=2)
            raise OptionError(
                f"'{path}': unknown key '{key}'"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
    return values
