# What one can do here. Every target sets up what it needs: a virtual environment in .venv, from the lock file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests wait for processes, servers and disks as much as they compute: one worker more than there are processors.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: demo test check bench bench-postgres bench-moving bench-archive bench-sourcing bench-cdc bench-cqrs_write bench-streams bench-flow_state bench-flow_kills picture lock wheel clean help

help:  ## this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 44

demo: $(READY)  ## play January 2013 through all four patterns (DEMO="--follow --speed 600" and so on)
	@$(BIN)/millstream demo $(DEMO)

test: $(READY)  ## run all tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)  ## measure, beside the peers (BENCH="one threads" for some)
	@$(BIN)/python benchmarks/log.py $(BENCH)

bench-postgres bench-moving bench-archive bench-sourcing bench-cdc bench-cqrs_write bench-streams bench-flow_state bench-flow_kills: $(READY)  ## measure PostgreSQL, copies, archives, aggregates, captures, commands, flows and their state
	@$(BIN)/python benchmarks/$(@:bench-%=%).py $(BENCH)

picture: $(READY)  ## draw docs/images/demo.svg anew, from a run of the demo
	@$(BIN)/python docs/images/make_demo.py

lock: $(READY)  ## pin the newest versions that pyproject.toml allows
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate \
	    --extra all --group dev -o requirements.lock pyproject.toml

wheel: $(READY)  ## build the wheel into dist/
	@$(BIN)/python -m build -q --wheel --no-isolation

clean:  ## remove what the other targets made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or later) is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed"; exit 1; }
	@echo "Setting up $(VENV) (once; about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
