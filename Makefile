# Tesserec's interface for people: `make demo`, `make test`; `make help` lists the rest.
VENV ?= .venv
PY ?= python3
BIN := $(VENV)/bin
VENV_PEERS ?= .venv-peers
TORCH_CPU ?= https://download.pytorch.org/whl/cpu
BENCH = --peer-python $(VENV_PEERS)/bin/python $(if $(QUICK),--quick)
export UV_PYTHON_DOWNLOADS = never

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit docs bench bench-peers bench-data format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

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

bench-peers: $(VENV_PEERS)/ready  ## torch, FBGEMM and TorchRec in an environment of their own

# pip, because it goes on where an index is out of reach. TorchRec asks for the CUDA build of FBGEMM: it comes
# without its dependencies, and these by hand.
PEERS_PIP = $(VENV_PEERS)/bin/python -m pip install -q --disable-pip-version-check --retries 1
$(VENV_PEERS)/ready:
	test -x $(VENV_PEERS)/bin/python || $(PY) -m venv $(VENV_PEERS)
	$(PEERS_PIP) --extra-index-url $(TORCH_CPU) 'torch==2.13.*'
	$(PEERS_PIP) fastapi 'uvicorn[standard]' orjson
	$(PEERS_PIP) 'fbgemm-gpu-cpu==1.8.*' numpy pandas pyarrow tensordict torchmetrics==1.0.3 pyre-extensions tqdm
	$(PEERS_PIP) --no-deps 'torchrec==1.8.*'
	$(VENV_PEERS)/bin/python -W ignore -c 'import benchmarks.peers.tables, benchmarks.peers.dlrm, benchmarks.peers.sharded'
	touch $@

bench: $(VENV)/dev bench-peers  ## ours beside the peers, in turns: the figures of docs/benchmarks.md (QUICK=1)
	$(BIN)/python -m benchmarks.embedding_forward $(BENCH)
	$(BIN)/python -m benchmarks.embedding_train $(BENCH)
	$(BIN)/python -m benchmarks.embedding_int8 $(BENCH)
	$(BIN)/python -m benchmarks.dlrm_step $(BENCH)
	$(BIN)/python -m benchmarks.serve_capacity $(BENCH)

bench-data: $(VENV)/dev  ## the figures about reading and preparing data
	$(BIN)/python benchmarks/prepare_csv.py
	$(BIN)/python benchmarks/read_parquet.py
	$(BIN)/python -m benchmarks.dlrm_parquet

format: $(VENV)/dev  ## ruff, rewriting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made
	rm -rf $(VENV) $(VENV_PEERS) benchmarks/results demo docs/_build build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
