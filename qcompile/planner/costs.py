"""What each layer costs in each form, and each conversion: measured in context, or from a table.

A profile cannot be believed as it is. ONNX Runtime's profiler adds about 2 us to every kernel it
times (fmnist_dwcnn, one thread: 70 against 94 us by the profile where the clock says 40 against 37,
so that the raw profile picks the slower model), and cuts to whole microseconds. So latencies of whole
models are measured without it, interleaved, and each profile is corrected to add up to that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.backends.ort import Feed
from qcompile.environment import describe_machine, describe_versions
from qcompile.ir.errors import OptionError
from qcompile.ir.plan import INT16
from qcompile.measure import measure_many
from qcompile.planner.clock import idle_ns
from qcompile.planner.graph_problem import Latencies
from qcompile.planner.kernel_times import FormTimes, form_times
from qcompile.planner.unit_costs import UnitCosts, measure_unit_costs, table_unit_costs

__all__ = ["COSTS_VERSION", "MEASURED", "Costs", "LayerCost", "measure_costs", "table_costs"]

COSTS_VERSION = 1
MEASURED, TABLE = "measured", "table"
ORIGINAL = "original"
"""The user's own model among the totals."""


@dataclass(frozen=True)
class LayerCost:
    """Nanoseconds of one layer in each form; None where it was not seen in that form.

    What a fusion takes in costs nothing: the whole kernel stands with its anchor.
    """

    float_ns: int | None = None
    int_ns: int | None = None
    dynamic_ns: int | None = None
    wide_ns: int | None = None


@dataclass(frozen=True)
class Costs:
    """Costs of one model on one machine.

    Attributes:
        layers: origin id -> cost.
        quantize_ns: tensor -> latency of making it integer, with what rearranging that needs.
        dequantize_ns: tensor -> latency of making it float again.
        totals_ns: form ("float", "int8", "int8-dynamic", "int16") -> latency of the whole model in it, and of
            the user's own ("original").
        base_ns: what a call costs that does no work.
        source: "measured" or "table".
        threads: threads inside an operator.
        shapes: input name -> shape measured at.
        machine: as `describe_machine`, {} for a table.
        versions: as `describe_versions`.
    """

    layers: Mapping[str, LayerCost]
    quantize_ns: Mapping[str, int]
    dequantize_ns: Mapping[str, int]
    totals_ns: Mapping[str, int]
    base_ns: int
    source: str
    threads: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def latencies(self, planned: Collection[str]) -> Latencies:
        """As the planner takes them; layers that are not ``planned`` stay float, in the base.

        Args:
            planned: origins of all units and of what they absorb; a layer that is named here and is
                in no unit would be in no total.
        """
        names = set(planned)
        rest = sum(c.float_ns or 0 for name, c in self.layers.items() if name not in names)

        def form(pick: Callable[[LayerCost], int | None]) -> dict[str, int]:
            found = {name: pick(cost) for name, cost in self.layers.items() if name in names}
            return {name: ns for name, ns in found.items() if ns is not None}

        return Latencies(
            float_ns=form(lambda c: c.float_ns),
            int_ns=form(lambda c: c.int_ns),
            dynamic_ns=form(lambda c: c.dynamic_ns),
            wide_ns=form(lambda c: c.wide_ns),
            quantize_ns=dict(self.quantize_ns),
            dequantize_ns=dict(self.dequantize_ns),
            base_ns=self.base_ns + rest,
        )

    @property
    def original_ns(self) -> int:
        """Latency of the user's own model; of the float form where that is all that is known."""
        return self.totals_ns.get(ORIGINAL, self.totals_ns["float"])

    def to_json(self) -> str:
        """Deterministic text: sorted, one layer or tensor a line, whole nanoseconds."""
        head = {
            "version": COSTS_VERSION,
            "source": self.source,
            "threads": self.threads,
            "shapes": {name: list(shape) for name, shape in sorted(self.shapes.items())},
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "totals_ns": dict(self.totals_ns),
            "base_ns": self.base_ns,
        }
        lines = [f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in head.items()]
        layers = {
            name: {
                form: ns
                for form, ns in (
                    ("float_ns", cost.float_ns),
                    ("int_ns", cost.int_ns),
                    ("dynamic_ns", cost.dynamic_ns),
                    ("wide_ns", cost.wide_ns),
                )
                if ns is not None
            }
            for name, cost in self.layers.items()
        }
        names = sorted({*self.quantize_ns, *self.dequantize_ns})
        tensors = {
            name: {
                "quantize_ns": self.quantize_ns.get(name, 0),
                "dequantize_ns": self.dequantize_ns.get(name, 0),
            }
            for name in names
        }
        lines += [_table("layers", layers), _table("tensors", tensors)]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Costs:
        """Read what ``to_json`` wrote.

        Raises:
            OptionError: not JSON, another version, or numbers that cannot be costs.
        """
        try:
            data: Any = json.loads(text)
            if data["version"] != COSTS_VERSION:
                raise OptionError(
                    f"costs version {data['version']} cannot be read; "
                    f"this qcompile reads {COSTS_VERSION}: measure again"
                )
            layers = {
                name: LayerCost(**{form: _ns(ns) for form, ns in row.items()})
                for name, row in data["layers"].items()
            }
            tensors = data["tensors"].items()
            return cls(
                layers=layers,
                quantize_ns={name: _ns(row["quantize_ns"]) for name, row in tensors},
                dequantize_ns={name: _ns(row["dequantize_ns"]) for name, row in tensors},
                totals_ns={name: _ns(ns) for name, ns in data["totals_ns"].items()},
                base_ns=_ns(data["base_ns"]),
                source=str(data["source"]),
                threads=data["threads"],
                shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
                machine=data["machine"],
                versions=data["versions"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise OptionError(
                f"the costs are not readable ({type(e).__name__}: {e}); "
                "needed: a costs.json that qcompile wrote"
            ) from e

    def text(self) -> str:
        """One line for the report: where the numbers come from."""
        if self.source != MEASURED:
            return "costs: estimated from multiply-adds and bytes, not measured"
        threads = "default threads" if self.threads is None else f"{self.threads} thread"
        threads += "s" if (self.threads or 1) > 1 else ""
        cpu = self.machine.get("cpu", "unknown CPU")
        runtime = self.versions.get("onnxruntime", "?")
        return f"costs: measured on {cpu}, {threads}, ONNX Runtime {runtime}"


def _table(name: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    lines = [f"    {json.dumps(k)}: {json.dumps(rows[k], sort_keys=True)}" for k in sorted(rows)]
    body = ",\n".join(lines)
    return f"  {json.dumps(name)}: {{\n{body}\n  }}" if lines else f"  {json.dumps(name)}: {{}}"


def _ns(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number of nanoseconds")
    return value


def measure_costs(
    float_model: Path,
    int_model: Path,
    feeds: Sequence[Feed],
    *,
    original: Path | None = None,
    dynamic_model: Path | None = None,
    wide_model: Path | None = None,
    planned: Collection[str] = (),
    elements: Mapping[str, int] | None = None,
    threads: int | None = None,
    budget_s: float = 10.0,
    clock: Mapping[Path, float] | None = None,
    custom_ops: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Measure one model's layers in each form.

    Args:
        float_model: lowered model in which everything is float; nodes carry origin ids.
        int_model: lowered model in which everything that can be is int8.
        feeds: inputs; the costs are those of the first one's shapes.
        original: the user's model, for its latency alone.
        dynamic_model: lowered model in which everything that can be is int8-dynamic.
        wide_model: lowered model in which everything that can be is int16.
        planned: layers that are integer in ``int_model``: conversions among them count with
            them (an activation that is faster in float has its own Q and DQ).
        elements: tensor name -> elements, for the tensors whose conversions are wanted.
        threads: threads inside an operator; None leaves ONNX Runtime's choice.
        budget_s: half of it goes to the clock, half to the profiles.
        clock: nanoseconds by model file, where these models were timed side by side already.
        custom_ops: library with custom operators.
        progress: told the share of the work done.

    Raises:
        ModelError: a model cannot be opened or run.
    """
    paths = {"float": Path(float_model), "int8": Path(int_model)}
    if dynamic_model is not None:
        paths["int8-dynamic"] = Path(dynamic_model)
    if wide_model is not None:
        paths[INT16] = Path(wide_model)
    told = progress or (lambda share: None)
    models = paths if original is None else {**paths, ORIGINAL: Path(original)}
    known = dict(clock or {})
    if not all(path in known for path in models.values()):
        found = measure_many(
            models,
            feeds[:1],
            threads=threads,
            budget_s=budget_s / 2,
            custom_ops=custom_ops,
            progress=lambda share: told(share / 2),
        )
        known = idle_ns(found, models)
    totals = {name: known[path] for name, path in models.items()}
    forms: dict[str, FormTimes] = {}
    for index, (name, path) in enumerate(paths.items()):
        forms[name] = form_times(
            path,
            feeds[0],
            totals[name],
            integer=() if name == "float" else frozenset(planned),
            threads=threads,
            budget_s=budget_s / 2 / len(paths),
            custom_ops=custom_ops,
        )
        told(0.5 + 0.5 * (index + 1) / len(paths))
    units = measure_unit_costs(threads=threads)
    return _assemble(forms, totals, units, elements or {}, feeds[0], threads)


def _assemble(
    forms: Mapping[str, FormTimes],
    totals: Mapping[str, float],
    units: UnitCosts,
    elements: Mapping[str, int],
    feed: Feed,
    threads: int | None,
) -> Costs:
    names = dict.fromkeys(origin for form in forms.values() for origin in form.layers)

    def cost(form: str, origin: str) -> int | None:
        found = forms[form].layers.get(origin) if form in forms else None
        return None if found is None else round(found)

    base = min(form.base_ns for form in forms.values())
    units = units.scaled(forms["int8"].conversions)
    blocked, last = forms["float"].blocked, forms["int8"].channels_last
    quantize, dequantize = {}, {}
    for tensor, count in sorted(elements.items()):
        out, back = units.quantize(count), units.dequantize(count)
        if tensor in blocked:
            out += units.unblock(count)
            back += units.block(count)
        if tensor in last:
            out += units.transpose(count)
            back += units.transpose(count)
        quantize[tensor], dequantize[tensor] = round(out), round(back)
    return Costs(
        layers={
            name: LayerCost(
                cost("float", name),
                cost("int8", name),
                cost("int8-dynamic", name),
                cost(INT16, name),
            )
            for name in names
        },
        quantize_ns=quantize,
        dequantize_ns=dequantize,
        totals_ns={name: round(ns) for name, ns in totals.items()},
        base_ns=round(base),
        source=MEASURED,
        threads=threads,
        shapes={name: tuple(getattr(value, "shape", ())) for name, value in feed.items()},
        machine=describe_machine(),
        versions=describe_versions(),
    )


def table_costs(
    work: Mapping[str, tuple[int, int]],
    elements: Mapping[str, int],
    *,
    dynamic: Collection[str] = (),
    wide: bool = False,
    speedup: float = 3.0,
) -> Costs:
    """Costs estimated from work alone, for a target that cannot be measured here.

    Args:
        work: origin id -> (multiply-accumulates, elements written).
        elements: tensor name -> elements.
        dynamic: layers that have a form with scales found at run time; it reads what it quantizes
            twice, and writes float.
        wide: there is a form with 16-bit activations; it multiplies half as fast as int8 and moves
            twice the bytes.
        speedup: how much faster int8 multiply-accumulates are.
    """
    units = table_unit_costs()
    layers = {}
    for origin, (macs, written) in work.items():
        moved = units.move(written)
        layers[origin] = LayerCost(
            float_ns=round(moved + macs * units.mac_ns),
            int_ns=round(moved / 2 + macs * units.mac_ns / speedup),
            dynamic_ns=round(2 * moved + macs * units.mac_ns / speedup)
            if origin in dynamic
            else None,
            wide_ns=round(moved + 2 * macs * units.mac_ns / speedup) if wide else None,
        )
    return Costs(
        layers=layers,
        quantize_ns={name: round(units.quantize(n)) for name, n in sorted(elements.items())},
        dequantize_ns={name: round(units.dequantize(n)) for name, n in sorted(elements.items())},
        totals_ns={
            "float": sum(c.float_ns or 0 for c in layers.values()),
            "int8": sum(c.int_ns or 0 for c in layers.values()),
        },
        base_ns=0,
        source=TABLE,
        versions=describe_versions(),
    )
