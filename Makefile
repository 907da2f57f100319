# Tesserec's interface for people: `make demo`, `make test`; `make help` lists the rest.
VENV ?= .venv
PY ?= python3
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS = never

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit docs bench format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

$(VENV)/user: pyproject.toml setup.py
	$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tesserec needs Python >= 3.11: make PY=python3.12 …")'
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q -p $(BIN)/python -e .
	touch $@

$(VENV)/dev: $(VENV)/user
	$(BIN)/uv pip install -q -p $(BIN)/python -e '.[dev,docs]'
	touch $@

demo: $(VENV)/user  ## raw logs -> train DLRM -> evaluate -> predict, in demo/ (ROWS=1200000)
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh

test: lint types unit  ## lint, types and every test

lint: $(VENV)/dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## mypy --strict
	$(BIN)/mypy

unit: $(VENV)/dev  ## pytest
	$(BIN)/pytest

docs: $(VENV)/dev  ## the manual, in docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/dev  ## the figures of docs/benchmarks.md that need no data set or peer
	$(BIN)/python benchmarks/prepare_csv.py
	$(BIN)/python benchmarks/read_parquet.py
	$(BIN)/python benchmarks/dlrm_parquet.py

format: $(VENV)/dev  ## ruff, rewriting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made
	rm -rf $(VENV) demo docs/_build build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
