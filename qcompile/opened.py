"""A model that stands open in a process of its own: measured as it opens, run there, timed there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.backends.ort import Port
from qcompile.child import Child, stored_feeds
from qcompile.measure import LoadResult, child_options, load_result

__all__ = ["OpenedModel"]

Feed = Mapping[str, Any]


class OpenedModel:
    """A model, opened as users open it and kept so: what opening costs is paid once.

    Attributes:
        path: its file.
        load: how it opened, and ran what it was tried with.
        inputs: in the model's order.
        outputs: in the model's order.
        child: the process.
    """

    load: LoadResult
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def __init__(
        self, path: Path, *, threads: int | None = None, custom_ops: Path | None = None
    ) -> None:
        """Begin to open it; nothing is known before it was tried."""
        self.path, self._models = path, {path.name: path}
        self._job = {"model": str(path.resolve()), **child_options(threads, True, custom_ops)}
        self.child = Child()
        self.child.send({"kind": "keep", **self._job})

    def wait(self) -> None:
        """Until it stands open: then inputs and outputs are known.

        Raises:
            ModelError: it cannot be opened, or crashes the runtime.
        """
        ports = self.child.reply(self._models)
        self.inputs, self.outputs = (
            tuple(Port(name, kind, tuple(shape)) for name, kind, shape in ports[way])
            for way in ("inputs", "outputs")
        )

    def try_out(self, feeds: Mapping[Path, Feed], room: int) -> int:
        """Run each feed once, as the first thing that it runs, and keep outputs as ``keep_outputs`` does.

        A feed that the runtime refuses is no exception: its message stands in ``load.errors``.

        Raises:
            ModelError: a feed crashes the runtime.
        """
        found = self._ran("try", feeds, room)
        self.load = load_result(found)
        left: int = found["room"]
        return left

    def keep_outputs(self, feeds: Mapping[Path, Feed], room: int) -> int:
        """Run feeds and write each one's outputs into its folder, see ``kept_outputs``.

        Args:
            feeds: by folder, which is made.
            room: bytes that may be written; what exceeds it is not.

        Returns:
            what is left of it.

        Raises:
            ModelError: the runtime refuses a feed.
        """
        left: int = self._ran("run", feeds, room)["room"]
        return left

    def _ran(self, kind: str, feeds: Mapping[Path, Feed], room: int) -> dict[str, Any]:
        with stored_feeds(list(feeds.values())) as files:
            places = [str(place.resolve()) for place in feeds]
            job = {"kind": kind, "feeds": files, "places": places, "room": room, **self._job}
            return self.child.ask(job, self._models)

    def close(self) -> None:
        """End the process."""
        self.child.end()
