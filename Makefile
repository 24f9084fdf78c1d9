# Every target does its own set-up: a fresh clone needs python3 (3.11 or newer) and make, and Go 1.26 for the real Kubernetes of
# the tests. Versions come from constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint format bench controlplane clean

demo: $(VENV)/.runtime  ## three simulated clusters, a real bus, one handler: the whole story in about twenty seconds
	@$(BIN)/ipe demo $(ARGS)

test: check controlplane-build  ## everything that must hold: linters, types, layers, generated files, tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(VENV)/.dev  ## linters, types, layers, generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/ipe schema check

lint: check

format: $(VENV)/.dev  ## rewrite the code in the house's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev  ## a table of all benchmarks beside their bars
	$(BIN)/python -m tests.bench all

.PHONY: controlplane-build
controlplane-build: $(VENV)/.dev
	$(BIN)/python -m tests.controlplane build --if-possible

controlplane: controlplane-build  ## a real Kubernetes control plane on this machine, until Ctrl-C
	$(BIN)/python -m tests.controlplane up

clean:  ## forget everything that the targets made in this folder
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11 (fix: make PYTHON=python3.12 …)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) (once)…" >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "setting up $(VENV) with the development tools (once)…" >&2
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime
