"""`qcompile init MODEL`: writes a calib.py and a qcompile.toml that fit the model, to be filled in."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.cli.flags import SETTINGS, json_flag
from qcompile.cli.output import print_json
from qcompile.data.inputs import InputSpec, input_specs
from qcompile.ir.errors import OutputError
from qcompile.ir.load import load_model

__all__ = ["command"]

_TOML = """# `qcompile` in this folder reads these; an option on the command line wins.
model = {model}
target = "ort-int8"
calibration = "calib.py:samples"
output = {output}
# metric = "eval.py:top1"      # (run) -> float; run(feed) gives {{output name: array}}
# max-drop = "0.5pt"           # needs the metric; without one: min-sqnr = 20
# min-speedup = 1.2
# threads = 4                  # as you deploy
# keep-float = ["/head/*"]
"""


@click.command("init", context_settings=SETTINGS)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite calib.py and qcompile.toml.")
@json_flag
def command(model: Path, force: bool, as_json: bool) -> int:
    r"""Write calib.py and qcompile.toml with every input's name, dtype and shape of MODEL.

    \b
    qcompile init model.onnx     # then load real samples in calib.py
    qcompile                     # compiles what qcompile.toml says
    """
    specs = input_specs(load_model(model).model)
    files = {
        Path("calib.py"): _script(specs),
        Path("qcompile.toml"): _TOML.format(
            model=_quoted(model), output=_quoted(Path(f"{model.stem}.ort-int8"))
        ),
    }
    for path in files:
        if path.exists() and not force:
            raise OutputError(f"'{path}' exists; pass --force to overwrite it")
    for path, text in files.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        if not as_json:
            print(f"wrote {path}")
    if as_json:
        inputs = [{"name": s.name, "dtype": s.dtype, "shape": s.shape} for s in specs]
        print_json({"wrote": [str(path) for path in files], "inputs": inputs})
    else:
        print("next: load real samples in calib.py, then run `qcompile`")
    return 0


def _quoted(path: Path) -> str:
    return '"' + path.as_posix().replace("\\", "\\\\").replace('"', '\\"') + '"'


def _script(specs: tuple[InputSpec, ...]) -> str:
    lines = [
        '"""Calibration samples for qcompile: 32 to 256 real inputs, preprocessed as in production."""',
        "",
        "import numpy as np",
        "",
        "",
        "def samples():",
        '    """Yield one feed a sample: {input name: array}."""',
        '    raise NotImplementedError("load real samples here, then delete this line")',
        "    for _ in range(64):",
        "        yield {",
    ]
    for spec in specs:
        dims = [str(d) if isinstance(d, int) else "1" for d in spec.shape or ()]
        shape = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
        lines.append(f"            # {spec}; replace by real data")
        lines.append(f"            {spec.name!r}: np.zeros({shape}, np.{spec.dtype}),")
    return "\n".join([*lines, "        }", ""])
