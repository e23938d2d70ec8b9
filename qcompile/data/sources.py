"""Opens calibration data of any kind as one indexable set of feeds; nothing is held in memory twice."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.data.feeds import FeedSet
from qcompile.data.images import IMAGE_SUFFIXES, Preprocess, parse_preprocess
from qcompile.data.inputs import Feed, InputSpec, fit_feed, random_feeds
from qcompile.data.script import beside, load_function
from qcompile.data.text import TEXT_SUFFIXES, TextRecipe, open_text
from qcompile.ir.errors import BackendMissingError, CalibrationError, OptionError, QCompileError
from qcompile.scratch import scratch_root

__all__ = ["FeedSet", "open_feeds"]

RANDOM_COUNT = 16


def open_feeds(
    source: object,
    specs: tuple[InputSpec, ...],
    *,
    preprocess: str | None = None,
    seed: int = 0,
    option: str = "--calibration",
    text: TextRecipe | None = None,
) -> FeedSet:
    """Open ``source`` as feeds of a model with inputs ``specs``.

    Args:
        source: None (random data), a folder of images, .npz or .npy files, one such file,
            "file.py:function" (a function without arguments that returns an iterable of feeds; the
            default function is polygraphy's ``load_data``), polygraphy's input JSON, an iterable of
            feeds or of arrays (one input), or a function that returns one.
        preprocess: preset or recipe for images.
        seed: for random data.
        option: named in errors.
        text: turns text files into samples.

    Raises:
        CalibrationError: nothing there, or data that do not fit.
        OptionError: preprocess without images, or images without preprocess.
    """
    if source is None:
        feeds = random_feeds(specs, RANDOM_COUNT, seed)
        names = [f"random {i}" for i in range(len(feeds))]
        return FeedSet(
            "random data that fits the input spec", names, feeds.__getitem__, random=True
        )
    if isinstance(source, FeedSet):
        return source
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in TEXT_SUFFIXES:
        opened = open_text(Path(source), specs, text, option)
    elif isinstance(source, (str, Path)):
        opened = _open_path(str(source), specs, preprocess, option)
    else:
        opened = _open_iterable(source, specs, "data given in Python")
    if len(opened) == 0:
        raise CalibrationError(
            f"{option} {_show(source)} holds no samples; at least one is needed, 32 to 256 are usual"
        )
    return opened


def _show(source: object) -> str:
    return f"'{source}'" if isinstance(source, (str, Path)) else "data"


def _open_path(
    text: str, specs: tuple[InputSpec, ...], preprocess: str | None, option: str
) -> FeedSet:
    script, _, function = text.rpartition(":")
    if script.endswith(".py") or text.endswith(".py"):
        file, name = (script, function) if script.endswith(".py") else (text, "load_data")
        return _open_iterable(_call(Path(file), name, option), specs, text)
    path = Path(text)
    if not path.exists():
        raise CalibrationError(f"{option} '{text}' does not exist")
    recipe = None if preprocess is None else parse_preprocess(preprocess)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return _open_files(path, files, specs, recipe, option)
    return _open_files(path.parent, [path], specs, recipe, option)


def _open_files(
    root: Path,
    files: list[Path],
    specs: tuple[InputSpec, ...],
    recipe: Preprocess | None,
    option: str,
) -> FeedSet:
    arrays = [p for p in files if p.suffix in (".npz", ".npy")]
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if arrays and recipe is not None and not images:
        raise OptionError(
            f"--preprocess is for images, but {option} '{root}' holds .npz or .npy arrays"
        )
    if arrays:
        return _open_arrays(root, arrays, specs)
    if images:
        return _open_images(root, images, specs, recipe)
    if len(files) == 1 and files[0].suffix == ".json":
        return _open_iterable(_polygraphy_json(files[0]), specs, files[0].name)
    kinds = ", ".join(sorted({p.suffix or p.name for p in files})[:5]) or "no files"
    raise CalibrationError(
        f"{option} '{files[0] if len(files) == 1 else root}' holds {kinds}; "
        "needed: images, .npz or .npy files, a .py script, or polygraphy's input JSON"
    )


def _open_arrays(root: Path, files: list[Path], specs: tuple[InputSpec, ...]) -> FeedSet:
    """A sample is a whole file, or a part of one along axis 0 (see ``_parts``)."""
    index: list[tuple[Path, int, int]] = []
    for file in files:
        parts = _parts(_read_arrays(file, specs), specs, only_file=len(files) == 1)
        index += [(file, i, parts) for i in range(parts)]
    notes: dict[str, None] = {}
    cache: dict[Path, dict[str, npt.NDArray[np.generic]]] = {}

    def load(i: int) -> Feed:
        file, part, parts = index[i]
        if file not in cache:
            cache.clear()
            cache[file] = _read_arrays(file, specs)
        feed: Mapping[str, npt.NDArray[np.generic]] = cache[file]
        if parts > 1:
            step = {k: len(v) // parts for k, v in feed.items()}
            feed = {k: v[part * step[k] : (part + 1) * step[k]] for k, v in feed.items()}
        fitted, done = fit_feed(feed, specs, names[i])
        notes.update(dict.fromkeys(done))
        return fitted

    names = [f.name if n == 1 else f"{f.name}[{p}]" for f, p, n in index]
    if index and any(n > 1 for _, _, n in index):
        notes["files were split along axis 0 into samples"] = None
    return FeedSet(f"{root.name or root}: {len(index)} samples of arrays", names, load, notes=notes)


def _parts(
    arrays: Mapping[str, npt.NDArray[np.generic]], specs: tuple[InputSpec, ...], only_file: bool
) -> int:
    """Into how many samples one file splits: by the fixed batch, or (one file, free batch) by one."""
    counts = set()
    for spec in specs:
        array = arrays.get(spec.name)
        if array is None or spec.shape is None or array.ndim != len(spec.shape) or array.ndim == 0:
            return 1
        batch = spec.shape[0]
        if not isinstance(batch, int):
            if not only_file:
                return 1
            batch = 1
        if batch == 0 or len(array) % batch:
            return 1
        counts.add(len(array) // batch)
    return counts.pop() if len(counts) == 1 else 1


def _read_arrays(file: Path, specs: tuple[InputSpec, ...]) -> dict[str, npt.NDArray[np.generic]]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if file.suffix == ".npz":
            with loaded:
                return {k: loaded[k] for k in loaded.files}
    except (ValueError, OSError, EOFError, KeyError) as e:
        raise CalibrationError(f"'{file}' cannot be read as {file.suffix}: {e}") from e
    except Exception as e:  # zipfile and pickle raise their own kinds on damaged files
        raise CalibrationError(f"'{file}' is damaged: {type(e).__name__}: {e}") from e
    if len(specs) != 1:
        raise CalibrationError(
            f"'{file}' is one array {loaded.dtype}{list(loaded.shape)}, but the model has {len(specs)} "
            f"inputs ({'; '.join(map(str, specs))}); save an .npz with one array by input name"
        )
    return {specs[0].name: loaded}


def _open_images(
    root: Path, files: list[Path], specs: tuple[InputSpec, ...], recipe: Preprocess | None
) -> FeedSet:
    if recipe is None:
        raise OptionError(
            f"'{root}' holds images; say how the model wants them with --preprocess "
            '(imagenet, unit, ... or "resize=256,crop=224,rgb,scale=1/255,mean=..,std=..,layout=nchw")'
        )
    floats = [s for s in specs if s.shape is not None and len(s.shape) == 4]
    if len(specs) != 1 or len(floats) != 1:
        raise CalibrationError(
            f"images fit a model with one 4-D input; this one has {'; '.join(map(str, specs))}; "
            "give .npz files, one array by input name"
        )
    spec = floats[0]
    notes: dict[str, None] = {}

    def load(i: int) -> Feed:
        fitted, done = fit_feed({spec.name: recipe.load(files[i], spec)}, specs, files[i].name)
        notes.update(dict.fromkeys(done))
        return fitted

    names = [str(p.relative_to(root)) for p in files]
    return FeedSet(
        f"{root.name or root}: {len(files)} images, {recipe.text}", names, load, notes=notes
    )


def _call(path: Path, name: str, option: str) -> object:
    needed = "a function without arguments that returns an iterable of {input name: array}"
    function = load_function(path, name, option, needed, CalibrationError)
    with beside(path):
        try:
            return function()
        except CalibrationError:
            raise
        except Exception as e:  # the user's own code may raise anything
            raise CalibrationError(f"{option}: {path}:{name} raised {type(e).__name__}: {e}") from e


def _polygraphy_json(path: Path) -> Iterable[Any]:
    try:
        from polygraphy.json import load_json
    except ImportError as e:
        raise BackendMissingError(
            f"'{path}' is JSON: reading polygraphy's input files needs `pip install polygraphy`"
        ) from e
    try:
        loaded = load_json(str(path))
    except Exception as e:
        raise CalibrationError(f"'{path}' is not polygraphy's input JSON: {e}") from e
    return loaded if isinstance(loaded, list) else [loaded]


def _drawn(produced: Iterable[Any], description: str) -> Iterator[Any]:
    """Its items; what the user's generator raises names where it comes from."""
    count = 0
    try:
        for item in produced:
            yield item
            count += 1
    except QCompileError:
        raise
    except Exception as e:  # the user's own code may raise anything
        raise CalibrationError(
            f"{description} raised {type(e).__name__} at sample {count}: {e}"
        ) from e


def _open_iterable(source: object, specs: tuple[InputSpec, ...], description: str) -> FeedSet:
    """Spools an iterable to a temporary folder, so that it may be longer than memory and read twice."""
    produced = source() if callable(source) else source
    if not isinstance(produced, Iterable):
        raise CalibrationError(
            f"{description} is {type(produced).__name__}; needed: an iterable of "
            f"{{input name: array}} for {'; '.join(map(str, specs))}"
        )
    if isinstance(produced, Mapping):
        produced = [produced]
    notes: dict[str, None] = {}
    held = tempfile.TemporaryDirectory(dir=scratch_root(), ignore_cleanup_errors=True)
    folder = Path(held.name)
    count = 0
    for item in _drawn(produced, description):
        feed = (
            item
            if isinstance(item, Mapping)
            else {specs[0].name: item}
            if len(specs) == 1
            else None
        )
        if feed is None:
            raise CalibrationError(
                f"sample {count} of {description} is {type(item).__name__}; the model has {len(specs)} "
                f"inputs, so needed: a dict with {', '.join(s.name for s in specs)}"
            )
        fitted, done = fit_feed(feed, specs, f"sample {count}")
        notes.update(dict.fromkeys(done))
        with (folder / f"{count}.npz").open("wb") as file:
            np.savez(file, *(fitted[s.name] for s in specs))
        count += 1

    def load(i: int) -> Feed:
        with np.load(folder / f"{i}.npz") as stored:
            return {s.name: stored[f"arr_{j}"] for j, s in enumerate(specs)}

    return FeedSet(
        f"{description}: {count} samples",
        [f"sample {i}" for i in range(count)],
        load,
        notes=notes,
        keep=held,
    )
