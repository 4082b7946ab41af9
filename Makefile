# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`. CI runs `make test-all`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
ALL_STAMP := $(VENV)/.installed-all
export TF_CPP_MIN_LOG_LEVEL ?= 2
# These mostly compute: two at a time. The others run many processes of their own and watch the clock.
COMPUTING := tests/models tests/physics tests/convert tests/docs

.PHONY: demo test test-all lint install clean

demo: $(RUN_STAMP)  ## install what the line needs, then draw 20 maps from 5 devices
	$(BIN)/epic testbed run --events 20 --out out/demo

test: $(ALL_STAMP)  ## install everything, then run the tests that need no real time
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(COMPUTING)
	$(BIN)/python -m pytest -q -m "not slow" $(COMPUTING:%=--ignore=%)

test-all: $(ALL_STAMP)  ## install everything, then run all tests
	$(BIN)/python -m pytest -q -n 2 --durations=20 $(COMPUTING)
	$(BIN)/python -m pytest -q --durations=20 $(COMPUTING:%=--ignore=%)

lint: $(ALL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(ALL_STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

# The line itself: no torch, no test tools.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[edge,central]'
	touch $@

$(ALL_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]'
	touch $@ $(RUN_STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis
