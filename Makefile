# Each target makes what it needs from nothing, its own virtual environment included; a second call
# finds it ready. `make demo PYTHON=python3.12 VENV=/somewhere/else` if the defaults do not suit.

PYTHON ?= python3
VENV   ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY  := $(BIN)/python
# As many workers as cores; a file's tests stay together, since they share models.
PARALLEL ?= -n auto --dist loadfile
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint docs recipes wheel-test floor-test clean
help:
	@echo 'make demo        compile a small network and print top-1 before and after, speed, size, time'
	@echo 'make test        all tests'
	@echo 'make lint        ruff and mypy'
	@echo 'make docs        the documentation as a site, in build/site'
	@echo 'make recipes     run the recipes of the documentation; RECIPES="cnn ocr" for some of them'
	@echo 'make wheel-test  build the wheel, install it elsewhere, run the demo there without a network'
	@echo 'make floor-test  all tests on the oldest supported Python and packages'
	@echo 'make clean       remove what these made'

demo: $(VENV)/.cpu
	$(BIN)/qcompile demo

test: $(VENV)/.test
	$(PY) -m pytest $(PARALLEL)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy models
	$(PY) -m mypy benchmarks

docs: $(VENV)/.docs
	$(PY) -m mkdocs build --quiet
	@echo 'wrote build/site/index.html'

recipes: $(VENV)/.cpu
	$(PY) docs/run_recipes.py $(RECIPES)

wheel-test: $(VENV)/.made
	$(PY) .ci/wheel_test.py

floor-test:
	$(PYTHON) .ci/floor_test.py

# Stamps: the environment, then one for each set of extras that was installed into it.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is not Python 3.10 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.cpu: pyproject.toml | $(VENV)/.made
	$(PIP) -e '.[cpu]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(PIP) -e '.[cpu,text,test]'
	@touch $@ $(VENV)/.cpu

$(VENV)/.docs: pyproject.toml | $(VENV)/.made
	$(PIP) -e '.[cpu,docs]'
	@touch $@ $(VENV)/.cpu

$(VENV)/.lint: pyproject.toml | $(VENV)/.made
	$(PIP) -e '.[cpu,text,test,lint]'
	@touch $@ $(VENV)/.cpu $(VENV)/.test

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
