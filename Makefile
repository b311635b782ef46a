# Everything from a bare clone: environment, install, job. `make` alone lists what there is.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
DOCS   := $(VENV)/.docs

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs wheel bench clean

help:
	@echo "make demo    what pondering buys: difficulty, a budget, text, a stream (2 minutes on two cores)"
	@echo "make test    all tests (a quarter of an hour)"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy over the library and a script of a user's"
	@echo "make docs    the documents, tutorials executed: docs/_build/html/index.html (3 minutes)"
	@echo "make wheel   a wheel, installed into a bare environment and tried there"
	@echo "make bench   the benchmark of the loops"
	@echo "make clean   removes what these have made, runs aside"

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

types: $(READY)
	$(BIN)/mypy

docs: $(DOCS)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(READY)
	$(BIN)/python tests/wheel.py

bench: $(READY)
	$(BIN)/python benchmarks/ponder.py

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "actjax needs Python 3.11 or newer, found %s: try make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[experiments,test]'
	touch $(READY)

$(DOCS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $(DOCS)

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build
