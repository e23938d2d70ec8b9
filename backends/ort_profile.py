"""What ONNX Runtime executes for a feed, kernel by kernel, with times: its profile and its own graph."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.backends.ort import Feed, Session, open_session
from qcompile.backends.ort_tags import EXTERNAL_FOLDER, Tagged
from qcompile.ir.errors import ModelError

__all__ = ["Kernel", "Profiler", "TensorInfo", "open_tagged", "profile_model"]


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape that a kernel saw, as ONNX Runtime writes them ("uint8", (1, 16, 14, 14))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


_WEIGHTS_ASIDE = {
    "session.optimized_model_external_initializers_file_name": "graph.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "4096",
}
"""The optimized graph is read for its nodes alone, and above 2 GB it could not be written whole."""


@dataclass(frozen=True)
class Kernel:
    """One executed node.

    Attributes:
        name: of the node in ONNX Runtime's own graph.
        op_type: what is executed.
        domain: of the operator; "" also where unknown (nodes of subgraphs).
        inputs: tensor names in ONNX Runtime's own graph; empty where unknown.
        outputs: likewise.
        read: what it read, in order, without inputs left out.
        written: what it wrote.
        ns: time per inference in nanoseconds as the profiler saw it, all calls together; 0 where
            nothing was timed.
        channels_last: a QLinearConv, pool or the like that runs in NHWC.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    read: tuple[TensorInfo, ...]
    written: tuple[TensorInfo, ...]
    ns: float
    channels_last: bool = False


def open_tagged(tagged: Tagged, **options: Any) -> Session:
    """A session for a tagged model; options as for `open_session`.

    Raises:
        ModelError: ONNX Runtime refuses the model; names the node as the file does.
    """
    config = {EXTERNAL_FOLDER: str(tagged.folder), **options.pop("config", {})}
    try:
        return open_session(tagged.model, config=config, **options)
    except ModelError as e:
        raise ModelError(tagged.plain(str(e))) from e


class Profiler:
    """A profiled session: run it, then ``finish`` for the kernels.

    Attributes:
        session: to run.
        execute_ns: after ``finish``, time of each run inside ONNX Runtime, profiler included.
    """

    def __init__(
        self,
        tagged: Tagged,
        *,
        threads: int | None = None,
        spinning: bool = False,
        custom_ops: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        """Open the session.

        Args:
            tagged: the model.
            threads: inside operators.
            spinning: let idle threads spin.
            custom_ops: library with custom operators.
            folder: where the profile and the optimized graph lie for a while, which has the size of the
                model; None: among the system's temporary files.

        Raises:
            ModelError: ONNX Runtime refuses the model.
        """
        self._folder = tempfile.TemporaryDirectory(
            prefix="qcompile-profile-", dir=folder, ignore_cleanup_errors=True
        )
        inside = Path(self._folder.name)
        self._graph = inside / "graph.onnx"
        self.execute_ns: list[float] = []
        self.session = open_tagged(
            tagged,
            threads=threads,
            spinning=spinning,
            custom_ops=custom_ops,
            profile=inside / "profile",
            save_optimized=self._graph,
            config=_WEIGHTS_ASIDE,
        )

    def run(self, feed: Feed) -> None:
        """One inference."""
        self.session.raw.run(None, self.session.given(feed))

    def finish(self, skip: int = 0) -> list[Kernel]:
        """The kernels in order of execution; the first ``skip`` runs are left out of their times.

        Raises:
            ModelError: the profile cannot be read.
        """
        try:
            path = self.session.end_profiling()
            events = _events(path.read_text(encoding="utf-8"))
            graph = onnx.load(self._graph, load_external_data=False).graph
        except (OSError, ValueError) as e:
            raise ModelError(f"ONNX Runtime's profile cannot be read: {e}") from e
        finally:
            self._folder.cleanup()
        self.execute_ns = [
            e.us * 1e3
            for e in sorted(events, key=lambda e: e.start)
            if e.name == "SequentialExecutor::Execute"
        ]
        return _kernels(events, list(_nodes(graph)), skip)


def profile_model(
    tagged: Tagged,
    feeds: Sequence[Feed],
    *,
    custom_ops: Path | None = None,
    folder: Path | None = None,
) -> list[Kernel]:
    """The kernels that run for ``feeds`` (once each); their times are of cold runs.

    ``folder`` is as for `Profiler`.

    Raises:
        ModelError: ONNX Runtime refuses the model or a feed.
    """
    profiler = Profiler(tagged, threads=1, custom_ops=custom_ops, folder=folder)
    for feed in feeds:
        profiler.session.run(feed)
    return profiler.finish()


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


@dataclass(frozen=True)
class _Event:
    """One line of a profile; what the kernel saw is read from ``text`` when it is wanted."""

    category: str
    name: str
    us: float
    start: float
    text: str

    def args(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        args: dict[str, Any] = found["args"]
        return args


_LINE = re.compile(
    r'\{"cat" : "(\w+)","pid" :\d+,"tid" :\d+,"dur" :(\d+),"ts" :(\d+),"ph" : "\w",'
    r'"name" :"([^"\\]*)","args" : \{.*\}\},?'
)


def _events(text: str) -> list[_Event]:
    """A profile's events, in the order of the file.

    ONNX Runtime writes one a line, with what is wanted of all of them in front: decoding the rest of
    thousands of lines would take longer than the runs did. What is written otherwise is decoded whole.
    """
    found = []
    for line in text.splitlines():
        if line.strip() in ("[", "]", ""):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            return [
                _Event(
                    str(e.get("cat", "")), e["name"], float(e["dur"]), float(e["ts"]), json.dumps(e)
                )
                for e in json.loads(text)
            ]
        category, us, start, name = match.groups()
        found.append(_Event(category, name, float(us), float(start), line.rstrip(",")))
    return found


def _kernels(events: Sequence[_Event], graph: Sequence[onnx.NodeProto], skip: int) -> list[Kernel]:
    """Events of all runs -> one kernel a node; times of one run are added, then averaged."""
    nodes = {node.name: node for node in graph if node.name}
    starts = sorted(e.start for e in events if e.name == "model_run")
    suffix = "_kernel_time"
    ordered = sorted(
        (e for e in events if e.category == "Node" and e.name.endswith(suffix)),
        key=lambda e: e.start,
    )
    bounds = np.array(starts)
    times: dict[str, dict[int, float]] = {}
    last: dict[str, _Event] = {}
    for event in ordered:
        name = event.name[: -len(suffix)]
        run = int(np.searchsorted(bounds, event.start, side="right")) - 1
        seen = times.setdefault(name, {})
        # the profiler cuts to whole microseconds: half of one is lost on average
        seen[run] = seen.get(run, 0.0) + (event.us + 0.5) * 1e3
        last[name] = event
    # nodes without a name (bodies of inlined functions) are called "Op_index" in the profile; they
    # stand in the graph in the order in which they run
    unnamed: dict[str, list[onnx.NodeProto]] = {}
    for node in graph:
        if not node.name:
            unnamed.setdefault(node.op_type, []).append(node)
    found = []
    for name, by_run in times.items():
        args = last[name].args()
        op_type = args["op_name"]
        matched = nodes.get(name)
        if matched is None and name.startswith(f"{op_type}_") and unnamed.get(op_type):
            matched = unnamed[op_type].pop(0)
        each = [ns for run, ns in by_run.items() if run >= skip]
        found.append(
            Kernel(
                name=name,
                op_type=op_type,
                domain="" if matched is None else matched.domain,
                inputs=() if matched is None else tuple(matched.input),
                outputs=() if matched is None else tuple(matched.output),
                read=_infos(args.get("input_type_shape", [])),
                written=_infos(args.get("output_type_shape", [])),
                ns=_typical(each) if each else 0.0,
                channels_last=matched is not None and _channels_last(matched),
            )
        )
    return found


def _typical(values: Sequence[float]) -> float:
    """Mean of the lowest quarter: what disturbs only ever adds, and a mean resolves below a tick."""
    ordered = np.sort(np.asarray(values))
    return float(np.mean(ordered[: (len(ordered) + 3) // 4]))


def _infos(raw: Sequence[Mapping[str, Sequence[int]]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(dtype, tuple(int(d) for d in shape))
        for each in raw
        for dtype, shape in each.items()
    )


def _channels_last(node: onnx.NodeProto) -> bool:
    return any(a.name == "channels_last" and a.i == 1 for a in node.attribute)
