# Everything runs inside .venv, which `make env` builds once from constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint bench docs

# The first interpreter that is new enough; override with `make PYTHON=/path/to/python3.12 env`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Processes that tests are divided among, file by file.
WORKERS ?= 2
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile
STAMP := .venv/.installed

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

env: $(STAMP)  ## build .venv and install the package with pinned dependencies

$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; pass PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## complete code inside a real package, with at least 16K tokens of context
	$(BIN)/python examples/demo.py

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	$(BIN)/mypy

test: lint  ## lint, then every test not marked slow
	$(PYTEST) -m "not slow"

test-all: lint  ## lint, then every test
	$(PYTEST)

docs: $(STAMP)  ## the documentation as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(STAMP)  ## speed and memory of `nano` on this machine; then the programs that compare with others
	$(BIN)/indexshare bench nano
	@echo; for f in $$(grep -l '__name__ == "__main__"' benchmarks/*.py | grep -v contenders); do \
		printf '  %s %s --help\n' "$(BIN)/python" "$$f"; done
