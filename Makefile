# Every target sets itself up: a virtual environment in .venv, installed once per change of the project's metadata.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TIMM := .venv-timm
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
METADATA := pyproject.toml constraints.txt
CHECKED := src tests benchmarks examples
# two workers with one thread each: BLAS threads that wait for one another double the time
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
TEST_TIMM := $(ONE_THREAD) $(TIMM)/bin/python -m pytest -n 2 tests/timm
TEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2 tests

.PHONY: demo test test-all lint postgresql architectures docs clean

demo: $(VENV)/.demo  ## The main job on an embedded model: adapt, measure, certify, fold, report.
	$(BIN)/equidial demo --output runs/demo

# the main run comes last: its closing line is the last one printed
test: lint postgresql $(TIMM)/.test  ## Lint, types, tests; seeded slices of the long property runs.
	$(TEST_TIMM)
	$(TEST)

test-all: lint postgresql $(TIMM)/.test  ## The same with every property run whole, and every cell of the compatibility matrix.
	EQUIDIAL_HYPOTHESIS=whole EQUIDIAL_DRAWS=20 $(TEST_TIMM)
	EQUIDIAL_HYPOTHESIS=whole EQUIDIAL_DRAWS=20 EQUIDIAL_MATRIX=whole $(TEST)

lint: $(VENV)/.test
	$(BIN)/ruff check --quiet $(CHECKED)
	$(BIN)/ruff format --quiet --check $(CHECKED)
	$(BIN)/pyright --pythonpath $(BIN)/python

# the server that tests/sweeps starts for itself; where it is not and cannot be installed, its tests say so
postgresql:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v initdb > /dev/null \
	    && ! ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1; then \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql > /dev/null || true; \
	fi

architectures: $(TIMM)/.test  ## The table of docs/results/architectures.md, about half an hour.
	$(BIN)/python -m benchmarks.architectures --library transformers
	$(TIMM)/bin/python -m benchmarks.architectures --library timm
	$(BIN)/python -m benchmarks.architectures --page docs/results/architectures.md

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

# timm and torchvision in an environment of their own, which sees every package of the first one: beside torchvision
# transformers takes other paths, and fails where torchvision's operators do not load
$(TIMM)/.test: tests/timm/environment/torchvision_operators.py $(METADATA) | $(VENV)/.test
	$(PYTHON) -m venv --clear $(TIMM)
	$(TIMM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchvision timm
	packages=$$($(TIMM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	cp $< "$$packages" && \
	printf 'import site; site.addsitedir("%s")\nimport torchvision_operators\n' "$$shared" > "$$packages/shared.pth"
	touch $@

$(VENV)/.docs: $(BIN)/python $(METADATA)
	$(PIP) --editable '.[all,docs]'
	touch $@

clean:
	rm -rf $(VENV) $(TIMM) runs docs/_build .pytest_cache .ruff_cache .hypothesis
