# `make demo` runs the main job on the corpus that ships; `make test` runs every check.
# Both set up .venv on their first run and start at once afterwards.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
  && command -v $$p && break; done)
BIN := .venv/bin

.PHONY: demo demo-fast test drill fuzz tools lint install lock sbom audit site clean

demo: install
	$(BIN)/carrara demo

demo-fast: install
	$(BIN)/carrara demo --fast

test: lint tools
	$(BIN)/pytest

# Three rehearsed machines, every fault: ten minutes, which `make test` leaves out.
drill: install tools
	$(BIN)/pytest -m drill

# 20,000 malformed answers, 20,000 pictures, 60,000 tars, parquets and lists; SEED=1 makes others.
SEED ?= 0
fuzz: install
	$(BIN)/python -m benchmarks.fuzz_answers --seed $(SEED)
	$(BIN)/python -m benchmarks.fuzz_pictures --seed $(SEED)
	$(BIN)/python -m benchmarks.malformed_files --seed $(SEED)

tools:
	tests/install-tools.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/.installed

.venv/.installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "carrara needs Python 3.11, 3.12 or 3.13 (found: \
	$$(python3 --version 2>&1)); install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Setting up .venv with $(PYTHON) (about 7 GB with torch; once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@rm -rf .venv/lib/python*/site-packages/tests  # torch-fidelity's, which would hide ours
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# What pyproject.toml asks for, resolved for every Python that is supported, each file with its hash.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11.5 \
	  --generate-hashes --no-header --quiet --output-file requirements.lock
	{ echo "# What was tested, without hashes: pip install -c constraints.txt carrara"; \
	  sed -nE 's/^([A-Za-z][^ ]*==[^ ]+)( ;.*)? \\$$/\1\2/p' requirements.lock; } > constraints.txt
	echo hatchling | $(BIN)/uv pip compile pyproject.toml - --extra rayserve --universal \
	  --python-version 3.11.5 --constraint constraints.txt --generate-hashes --no-header \
	  --no-annotate --quiet --output-file infra/deploy/docker/requirements.lock

sbom: install
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-file sbom.json requirements.lock

# Known vulnerabilities of what is locked; needs a network: a service is asked.
audit: install
	@$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip

site: install
	$(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv demo demo-fast site
