# Each target sets itself up in .venv once; `make demo` and `make test` are all a new machine needs.
PYTHON ?= python3
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint docs bench gpu notebook faults clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whence needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/whence demo

test: $(READY) lint docs
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs out/docs

bench: $(READY)
	$(BIN)/python -m benchmarks

# with $(PYTHON) and its own packages, not those of .venv, whose torch has no CUDA; skips its tests, and measures nothing,
# where torch sees no CUDA device
gpu:
	JAX_PLATFORMS=cuda,cpu $(PYTHON) -m pytest -q -o addopts= -p no:cacheprovider tests/test_gpu.py tests/decomp/test_gpu.py
	$(PYTHON) -m benchmarks.gpu

notebook: $(READY)
	$(BIN)/jupyter lab notebooks

faults: $(READY)
	$(BIN)/python -m tests.faults

clean:
	rm -rf $(VENV) out
