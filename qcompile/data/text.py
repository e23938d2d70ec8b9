"""Text files as samples of a language model: tokenized, cut into windows of equal length.

Inputs are recognised by their dtype and name, as exporters write them: token ids, an attention mask
(ones), positions, token types (zeros), and an empty cache (``past_key_values.*``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompile.data.feeds import FeedSet
from qcompile.data.inputs import Feed, InputSpec, is_cache
from qcompile.ir.errors import BackendMissingError, CalibrationError, OptionError

__all__ = [
    "TEXT_SUFFIXES",
    "TextRecipe",
    "open_text",
    "text_decoder",
    "text_recipe",
    "token_feed",
    "token_input",
]

TEXT_SUFFIXES = (".txt", ".md", ".text")


@dataclass(frozen=True)
class TextRecipe:
    """How text becomes samples.

    Attributes:
        tokenizer: tokenizer.json of the model.
        length: tokens of a sample.
    """

    tokenizer: Path
    length: int = 128


def text_recipe(tokenizer: Path | None, length: int) -> TextRecipe | None:
    """The recipe, None without a tokenizer."""
    return None if tokenizer is None else TextRecipe(tokenizer, length)


def open_text(
    path: Path, specs: tuple[InputSpec, ...], recipe: TextRecipe | None, option: str
) -> FeedSet:
    """Windows of a text file that do not overlap; what is left at the end is dropped.

    Raises:
        OptionError: no tokenizer was given.
        CalibrationError: the file cannot be read or is shorter than one window, or the model has an
            input that text says nothing about.
        BackendMissingError: the package that reads tokenizer.json is not installed.
    """
    if recipe is None:
        raise OptionError(
            f"{option} '{path}' is text: say how it becomes tokens with --tokenizer tokenizer.json"
        )
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise CalibrationError(f"{option} '{path}' cannot be read: {e.strerror or e}") from e
    ids = np.array(_encoder(recipe.tokenizer)(text), np.int64)
    length = _fixed_length(specs) or recipe.length
    count = len(ids) // length
    if not count:
        raise CalibrationError(
            f"{option} '{path}' has {len(ids)} tokens, fewer than one sample of {length}; give more "
            "text or a shorter --sequence"
        )
    token_feed(specs, ids[:length])  # says what does not fit before any work

    def load(i: int) -> Feed:
        return token_feed(specs, ids[i * length : (i + 1) * length])

    names = [f"{path.name}[{i * length}:{(i + 1) * length}]" for i in range(count)]
    return FeedSet(f"{path.name}: {count} windows of {length} tokens", names, load)


def token_input(specs: tuple[InputSpec, ...]) -> InputSpec | None:
    """The input that takes token ids; None where no input looks like it."""
    whole = [s for s in specs if s.dtype in ("int64", "int32") and _rank(s) == 2]
    named = [s for s in whole if "ids" in s.name.lower() and not _is_type(s) and not _is_place(s)]
    return named[0] if named else whole[0] if len(whole) == 1 else None


def token_feed(
    specs: tuple[InputSpec, ...],
    ids: npt.NDArray[np.int64],
    past: dict[str, Any] | None = None,
    others: Feed | None = None,
) -> Feed:
    """A feed for one row of token ids.

    Args:
        specs: of the model.
        ids: (n,).
        past: the cache's arrays by input name; by default it is empty.
        others: where inputs come from that text says nothing about (an encoder's output).

    Raises:
        CalibrationError: an input that text says nothing about.
    """
    tokens = token_input(specs)
    if tokens is None:
        raise CalibrationError(
            f"no input of the model takes token ids (inputs: {'; '.join(map(str, specs))}); needed: "
            "int64 with two dimensions, batch and sequence; give .npz files instead of text"
        )
    held = {s.name: (past or {}).get(s.name) for s in specs if is_cache(s)}
    before = max((a.shape[-2] for a in held.values() if a is not None), default=0)
    feed: Feed = {}
    for spec in specs:
        name = spec.name.lower()
        if spec is tokens:
            found: Any = ids[None]
        elif spec.name in held:
            given = held[spec.name]
            found = _empty(spec) if given is None else given
        elif "mask" in name and _rank(spec) == 2:
            found = np.ones((1, before + len(ids)))
        elif _is_place(spec):
            found = np.arange(before, before + len(ids))[None]
        elif _is_type(spec):
            found = np.zeros((1, len(ids)))
        elif others is not None and spec.name in others:
            found = others[spec.name]
        elif spec.dtype == "bool" and _rank(spec) in (0, 1):
            found = np.zeros((1,) * _rank(spec))
        else:
            raise CalibrationError(
                f"input '{spec}' is no token ids, mask, positions, token types or cache, so text says "
                "nothing about it; give .npz files instead of text"
            )
        feed[spec.name] = np.asarray(found, np.dtype(spec.dtype))
    return feed


def _empty(spec: InputSpec) -> npt.NDArray[np.generic]:
    shape = [d if isinstance(d, int) else 1 for d in spec.shape or ()]
    if not isinstance((spec.shape or (0, 0, 0, 0))[2], int):
        shape[2] = 0
    return np.zeros(shape, np.dtype(spec.dtype))


def _rank(spec: InputSpec) -> int:
    return -1 if spec.shape is None else len(spec.shape)


def _is_type(spec: InputSpec) -> bool:
    return "type" in spec.name.lower() and _rank(spec) == 2


def _is_place(spec: InputSpec) -> bool:
    return "position" in spec.name.lower() and _rank(spec) == 2


def _fixed_length(specs: tuple[InputSpec, ...]) -> int | None:
    tokens = token_input(specs)
    last = None if tokens is None or tokens.shape is None else tokens.shape[-1]
    return last if isinstance(last, int) else None


def text_decoder(path: Path) -> Callable[[list[int]], str]:
    """Tokens to text by a tokenizer.json.

    Raises:
        BackendMissingError: the package that reads it is not installed.
        CalibrationError: it cannot be read.
    """
    made = _tokenizer(path)
    return lambda ids: str(made.decode(ids, skip_special_tokens=False))


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise BackendMissingError(
            f"reading '{path}' needs the package tokenizers: `pip install 'qcompile[text]'`"
        ) from e
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as e:  # the package raises plain Exception
        raise CalibrationError(f"--tokenizer '{path}' cannot be read: {e}") from e
    made.no_padding()
    made.no_truncation()
    return made


def _encoder(path: Path) -> Callable[[str], list[int]]:
    made = _tokenizer(path)

    def encode(text: str) -> list[int]:
        return list(made.encode(text, add_special_tokens=False).ids)

    return encode
