# make env    makes .venv with everything pinned
# make demo   the main job on embedded weights and data
# make test   checks, then all tests with the speed passes and without them
# make check  lint, types, layers and sizes alone
# make conformance  the openai package's own tests against a running service
# make clients      other clients, each in an environment of its own, against a running service
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env demo test check conformance clients

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: env
	$(BIN)/onsa demo

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/sizes.py

test: check
	$(BIN)/python -m pytest -q -n 2 --dist worksteal
	ONSA_TEST_ACCEL=off $(BIN)/python -m pytest -q -n 2 --dist worksteal

conformance: env
	PYTHONPATH=tests $(BIN)/python -m clients.openai_python

clients: env
	$(BIN)/python tests/clients/others.py
