# Two commands do everything on a fresh machine with Python 3.11 to 3.13: `make demo` and `make test`. CI runs `make test-ci`.
PYTHON ?= $(or $(firstword $(foreach version,3.11 3.12 3.13,$(shell command -v python$(version)))),python3)
VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
ALL_STAMP := $(VENV)/.installed-all
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Three test files at a time on two cores, because many wait for devices and lines. A file stays in one process.
PARALLEL := -q -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-ci test-all lint install clean

demo: $(RUN_STAMP)  ## install what the line needs, then draw 20 maps from 5 devices
	$(BIN)/epic testbed run --events 20 --out out/demo

test: $(ALL_STAMP)  ## install everything, then run the tests that need no real time
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-ci: $(ALL_STAMP)  ## install everything, then run all tests but the longest
	$(BIN)/python -m pytest -m "not long" --durations=20 $(PARALLEL)

test-all: $(ALL_STAMP)  ## install everything, then run all tests
	$(BIN)/python -m pytest --durations=20 $(PARALLEL)

lint: $(ALL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(ALL_STAMP)

# A wrong Python leaves no environment that every later call would find.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "error: expected Python 3.11 to 3.13, found $(PYTHON); give make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install -q --upgrade pip

# The line itself: no test tools.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[edge,central]'
	touch $@

$(ALL_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]'
	touch $@ $(RUN_STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis
