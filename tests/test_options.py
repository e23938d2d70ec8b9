from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.ir.errors import OptionError
from qcompile.options import make_options, read_toml
from qcompile.techniques import ALL


def test_text_with_units_and_lists() -> None:
    options = make_options(
        max_latency="5ms", memory_limit="4GB", keep_float="/head/*", metric="top1", max_drop="1%"
    )
    assert options.max_latency == pytest.approx(5)
    assert options.memory_limit == 4_000_000_000
    assert options.keep_float == ("/head/*",)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tresholds": 1}, "unknown option 'tresholds'"),
        ({"thread": 1}, "did you mean threads"),
        ({"effort": "maximum"}, "use fast, default, max"),
        ({"require": ["real-date"]}, "use real-data"),
        ({"threads": 0}, "at least 1"),
        ({"min_speedup": 0}, "above 0"),
        ({"max_drop": "1%"}, "needs a --metric"),
        ({"techniques": "smooth-quants"}, "did you mean smooth-quant"),
        ({"techniques": "refit,-fold-scales"}, "give only one kind"),
        ({"techniques": 3}, "is no text"),
        ({"ranges": "missing.npz"}, "'missing.npz' does not exist"),
    ],
)
def test_options_that_cannot_be(given: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make_options(**given)


def test_techniques_are_all_none_named_or_left_out() -> None:
    assert make_options().techniques == ALL == make_options(techniques="all").techniques
    assert make_options(techniques="none").techniques == ()
    assert make_options(techniques="refit, fold-scales").techniques == ("fold-scales", "refit")
    assert make_options(techniques=["refit"]).techniques == ("refit",)
    assert make_options(techniques="-refit").techniques == ALL[:-1]
    assert not make_options(disable="fold-scales").uses("fold-scales")


def test_toml(tmp_path: Path) -> None:
    file = tmp_path / "qcompile.toml"
    file.write_text('model = "m.onnx"\nmin-speedup = 1.2\n')
    assert read_toml(file) == {"model": "m.onnx", "min_speedup": 1.2}
    file.write_text("max-dorp = 1\n")
    with pytest.raises(OptionError, match="did you mean max_drop"):
        read_toml(file)
    file.write_text("= 1\n")
    with pytest.raises(OptionError, match="cannot be read"):
        read_toml(file)
