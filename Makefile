# `make demo` and `make test` do everything from a bare clone: environment, install, job.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/python -m experiments demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

# The suite in a mode that users debug in: make test-nans, -rank, -strict, -leaks, -x64.
test-%: $(READY)
	ACTJAX_TEST_MODE=$* $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python benchmarks/ponder.py

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "actjax needs Python 3.11 or newer, found %s: try make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[experiments,test]'
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
