# Every target sets itself up: a virtual environment in .venv, installed once per change of the project's metadata.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
METADATA := pyproject.toml constraints.txt
CHECKED := src tests benchmarks examples
# two workers with one thread each: BLAS threads that wait for one another double the time
TEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests

.PHONY: demo test test-all lint docs clean

demo: $(VENV)/.demo  ## The main job on an embedded model: adapt, measure, certify, fold, report.
	$(BIN)/equidial demo --output runs/demo

test: lint  ## Lint, types, tests; seeded slices of the long property runs.
	$(TEST)

test-all: lint  ## The same with every property run whole.
	EQUIDIAL_HYPOTHESIS=whole EQUIDIAL_DRAWS=20 $(TEST)

lint: $(VENV)/.test
	$(BIN)/ruff check --quiet $(CHECKED)
	$(BIN)/ruff format --quiet --check $(CHECKED)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs  ## HTML in docs/_build.
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(METADATA)
	$(PIP) --editable '.[cli,report,data]'
	touch $@

$(VENV)/.test: $(BIN)/python $(METADATA)
	$(PIP) --editable '.[all,test,lint]'
	touch $@ $(VENV)/.demo

$(VENV)/.docs: $(BIN)/python $(METADATA)
	$(PIP) --editable '.[all,docs]'
	touch $@

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache .ruff_cache .hypothesis
