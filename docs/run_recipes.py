"""Runs the recipes as they stand in docs/, so that they cannot rot.

    python docs/run_recipes.py [NAME ...] [--models DIR] [--fetched DIR]

Of each page the python blocks whose first line is a comment with a file's name are written to an empty
folder, and the sh blocks are run there in order. ``$MODELS`` is models/; pages with ``needs: MODEL`` (or
a file's whole name) want it in ``$FETCHED`` (python models/fetch.py), and are skipped with a word where it
is not there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGES = {
    **{
        name: DOCS / "recipes" / f"{name}.md"
        for name in ("cnn", "transformer", "language-model", "detector", "ocr")
    },
    **{name: DOCS / f"{name}.md" for name in ("writing-a-pass", "writing-a-backend")},
}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
_NAMED = re.compile(r"# ([\w-]+\.py)\n")


@dataclass(frozen=True)
class Recipe:
    """What a page holds.

    Attributes:
        files: name -> content of the scripts.
        commands: shell blocks, in order.
        needs: models that fetch.py brings.
    """

    files: dict[str, str]
    commands: tuple[str, ...]
    needs: tuple[str, ...]


def read(page: Path) -> Recipe:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = _BLOCK.findall(text)
    files = {m[1]: body for kind, body in blocks if kind == "python" and (m := _NAMED.match(body))}
    commands = tuple(body for kind, body in blocks if kind == "sh")
    return Recipe(files, commands, tuple(re.findall(r"<!-- needs: (\S+) -->", text)))


def run(recipe: Recipe, models: Path, fetched: Path) -> None:
    """Run a recipe in an empty folder; raises CalledProcessError when a command fails."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    env = {**os.environ, "MODELS": str(models), "FETCHED": str(fetched), "PATH": path}
    with tempfile.TemporaryDirectory(prefix="recipe-", ignore_cleanup_errors=True) as folder:
        for name, body in recipe.files.items():
            (Path(folder) / name).write_text(body, encoding="utf-8")
        for command in recipe.commands:
            print(f"$ {command.strip()}", flush=True)
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=env, check=True
            )


def main() -> int:
    """Run the named recipes, or all; exit code 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    parser.add_argument("--models", type=Path, default=DOCS.parent / "models")
    parser.add_argument("--fetched", type=Path, default=Path("fetched"))
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in PAGES]
    if unknown:
        parser.error(f"no recipe is called {', '.join(unknown)}; there are {', '.join(PAGES)}")
    failed = []
    for name in args.names or PAGES:
        recipe = read(PAGES[name])
        files = {m: m if "." in m else f"{m}.onnx" for m in recipe.needs}
        lacking = [m for m, file in files.items() if not (args.fetched / file).is_file()]
        if lacking:
            print(f"=== {name}: skipped, needs {', '.join(lacking)} (python models/fetch.py)")
            continue
        start = time.perf_counter()
        print(f"=== {name}", flush=True)
        try:
            run(recipe, args.models.resolve(), args.fetched.resolve())
        except subprocess.CalledProcessError as e:
            print(f"=== {name}: FAILED with exit code {e.returncode}")
            failed.append(name)
        else:
            print(f"=== {name}: ok, {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
