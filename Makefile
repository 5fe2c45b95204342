# `make demo` runs the main job on the corpus that ships; `make test` runs every check.
# Both set up .venv on their first run and start at once afterwards.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
  && command -v $$p && break; done)
BIN := .venv/bin

.PHONY: demo demo-fast test tools lint install clean

demo: install
	$(BIN)/carrara demo

demo-fast: install
	$(BIN)/carrara demo --fast

test: lint tools
	$(BIN)/pytest

tools:
	tests/install-tools.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "carrara needs Python 3.11, 3.12 or 3.13 (found: \
	$$(python3 --version 2>&1)); install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Setting up .venv with $(PYTHON) (about 7 GB with torch; once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo demo-fast
