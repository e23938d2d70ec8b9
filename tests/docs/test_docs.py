"""The documentation: every command is there, links lead somewhere, recipes use options that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
from referencing import Registry, Resource

from qcompile.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """docs/run_recipes.py."""
    import sys

    spec = importlib.util.spec_from_file_location("run_recipes", DOCS / "run_recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_recipes"] = module
    spec.loader.exec_module(module)
    return module


def test_every_command_is_described() -> None:
    headings = set(re.findall(r"^## (.+)$", (DOCS / "commands.md").read_text("utf-8"), re.M))
    described = {word.strip() for line in headings for word in line.split(",")}
    assert set(COMMANDS) <= described


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [p for p in PAGES if f" {p.relative_to(DOCS).as_posix()}\n" not in nav] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_recipes_hold_scripts_that_parse_and_options_that_exist(runner: ModuleType) -> None:
    for name, page in runner.PAGES.items():
        recipe = runner.read(page)
        assert recipe.commands, name
        for file, body in recipe.files.items():
            compile(body, file, "exec")
        for line in "\n".join(recipe.commands).replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words and words[0] == "qcompile":
                known = words[1] if words[1] in COMMANDS else "compile"
                command = cli.get_command(None, known)  # type: ignore[arg-type]
                assert command is not None
                have = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
                assert {w for w in words if w.startswith("-")} <= have, line


def test_a_recipe_that_fails_is_told(runner: ModuleType, tmp_path: Path) -> None:
    import subprocess

    page = tmp_path / "page.md"
    page.write_text(
        "```python\n# a.py\nprint('hello')\n```\n```sh\npython a.py\nexit 5\n```\n", "utf-8"
    )
    recipe = runner.read(page)
    assert list(recipe.files) == ["a.py"]
    with pytest.raises(subprocess.CalledProcessError):
        runner.run(recipe, tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["writing-a-pass", "writing-a-backend"])
def test_what_extends_qcompile_runs(runner: ModuleType, name: str, tmp_path: Path) -> None:
    runner.run(runner.read(runner.PAGES[name]), ROOT / "models", tmp_path)


def test_an_artifact_fits_the_schemas(built: Path) -> None:
    schemas = {p.name: json.loads(p.read_text("utf-8")) for p in (DOCS / "schemas").glob("*.json")}
    registry: Registry[object] = Registry().with_resources(
        [(name, Resource.from_contents(schema)) for name, schema in schemas.items()]
    )
    files = {"plan": "plan.json", "manifest": "manifest.json", "lock": "qcompile.lock"}
    files["costs"] = "costs.json"
    for name, file in files.items():
        path = built / "net.ort-int8" / file
        if file != "costs.json" or path.is_file():
            schema = schemas[f"{name}.schema.json"]
            checker = jsonschema.Draft202012Validator(schema, registry=registry)
            checker.validate(json.loads(path.read_text("utf-8")))


def test_the_build_step_names_files_that_are_there() -> None:
    folder = ROOT / "examples" / "build-step"
    assert (folder / "../../models/fmnist_dwcnn.onnx").resolve().is_file()
    listed = set(re.findall(r"^\| `([^`]+)`", (folder / "README.md").read_text("utf-8"), re.M))
    assert listed == {"Makefile", "CMakeLists.txt", "github-actions.yml", "Dockerfile"}
    assert all((folder / name).is_file() for name in listed)
