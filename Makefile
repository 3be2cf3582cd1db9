# Each target sets itself up in .venv once; `make demo` and `make test` are all a new machine needs.
PYTHON ?= python3
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint docs bench gpu notebook faults clean

help: ## this list; times are of two quiet cores, after set-up (about four minutes, once)
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whence needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY) ## train a small model, explain what it writes, write out/report.html (two and a half minutes; six seconds afterwards)
	$(BIN)/whence demo

test: $(READY) lint docs ## linters, types, documents and the whole suite (fifteen minutes)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## build the documents in out/docs, with warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs out/docs

bench: $(READY) ## every benchmark at its full setting (many hours); one: python -m benchmarks.NAME
	$(BIN)/python -m benchmarks

# with $(PYTHON) and its own packages, not those of .venv, whose torch has no CUDA; skips its tests, and measures nothing,
# where torch sees no CUDA device
gpu: ## device tests and the tables of benchmarks/gpu.py, with the packages of $(PYTHON) (eight minutes)
	JAX_PLATFORMS=cuda,cpu $(PYTHON) -m pytest -q -o addopts= -p no:cacheprovider tests/test_gpu.py tests/decomp/test_gpu.py
	$(PYTHON) -m benchmarks.gpu

notebook: $(READY) ## JupyterLab on notebooks/
	$(BIN)/jupyter lab notebooks

faults: $(READY) ## the long form of every proof that the cache survives kills, damage, races and power cuts
	$(BIN)/python -m tests.faults

clean: ## remove .venv and out
	rm -rf $(VENV) out
