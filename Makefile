# Everything a newcomer needs: `make quickstart`, `make test`. Both set up .venv first, where that isn't done yet.

SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.PHONY: quickstart test quick-tests test-engine test-all bench lint types fmt docs .venv

# Written by the very last step of the set-up, so that one that was interrupted is not taken for done.
SET_UP := .venv/.set-up
VSTEER := .venv/bin/vsteer
# See tests/conftest.py for what runs beside what.
PYTEST := .venv/bin/pytest --numprocesses 2 --no-loadscope-reorder --durations 12

quickstart: $(SET_UP)
	$(VSTEER) run runs/quickstart.yaml
	$(VSTEER) report runs/quickstart

# All that needs no engine, and one engine: five minutes on two cores. Types are checked on a core that waits.
test: lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync=line types quick-tests

quick-tests: $(SET_UP)
	$(PYTEST) -m "not slow and not long and (not engine or one_engine)"

# Every way to run an engine, and what takes long without one.
test-engine: $(SET_UP)
	$(PYTEST) -m "(engine or long) and not slow"

test-all: lint types
	$(PYTEST)

# The store, the loop, scorers, statistics and queries on made-up data: about a quarter of an hour.
bench: $(SET_UP)
	.venv/bin/python -m tests.bench

lint: $(SET_UP)
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: $(SET_UP)
	.venv/bin/mypy

# The parts of docs/ that are made from the code.
docs: $(SET_UP)
	.venv/bin/python -m tests.test_docs

fmt: $(SET_UP)
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv: $(SET_UP)

$(SET_UP): pyproject.toml .ci/setup
	.ci/setup $@
