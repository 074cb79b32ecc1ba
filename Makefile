# The few things that are done with this project. Everything lives in .venv and .tollbook; `make clean` removes both.
# Nothing is needed but Python 3.11 to 3.14: the servers come as packages.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# A process of tests on each core, up to four, each with servers of its own; a process that is done takes from the other.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist worksteal
LOCKS := deploy/requirements.txt deploy/requirements-dev.txt
STAMP := $(VENV)/installed
UV ?= $(shell command -v uv || echo $(BIN)/uv)
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: install test test-faults test-containers demo demo-recharges bench check lock clean

install: $(STAMP)

# The stamp is newer than the locks when everything is installed, so that a repeat costs nothing.
$(STAMP): deploy/requirements-dev.txt pyproject.toml
	@found=; \
	for python in "$$PYTHON" python3.13 python3.12 python3.11 python3.14 python3; do \
	  if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Tollbook needs Python 3.11 to 3.14; here: $$(python3 --version 2>&1 || true). Install one, or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	[ -x $(BIN)/python ] && $(BIN)/python -c 'import pip' 2>/dev/null || "$$found" -m venv --clear $(VENV) || { \
	  echo "$$found cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r deploy/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not faults"

test-faults: install
	$(BIN)/python -m pytest -q -m faults

# The same tests on the official images; needs Docker.
test-containers: install
	TOLLBOOK_TEST_SERVERS=containers $(BIN)/python -m pytest -q -m "not faults"

demo: install
	$(BIN)/tollbook demo

# Two days of recharges on a clock that is moved.
demo-recharges: install
	$(BIN)/tollbook demo --play recharges

bench: install
	$(BIN)/python -m tests.bench

# Run after a change of the dependencies in pyproject.toml or of Kafka's version, and commit what it writes.
lock:
	$(COMPILE) pyproject.toml -o deploy/requirements.txt
	echo 'setuptools>=77' | $(COMPILE) pyproject.toml - --extra dev -o deploy/requirements-dev.txt
	$(BIN)/python -c 'from services.runtime.embedded.jars import write_lock; print(write_lock(), "jars locked")'

clean:
	-[ ! -x $(BIN)/python ] || $(BIN)/python -m services.runtime.embedded stop
	rm -rf $(VENV) .tollbook .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
