# Everything a machine needs is installed into .venv; nothing outside the checkout is touched
# (but for redis-server, Java and Maven, which `make test` installs where it may).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# CPU-only machines: TORCH_INDEX_URL=<index with CPU wheels> make demo
TORCH_INDEX_URL ?=
ARGS ?=
PYTEST_ARGS ?=

STATE := $(VENV)/.state
KEY := $(shell cat pyproject.toml constraints.txt 2>/dev/null | cksum | cut -d' ' -f1)
TORCH := $(STATE)/torch-$(shell sed -n 's/^torch==//p' constraints.txt)
DEMO := $(STATE)/demo-$(KEY)
TEST := $(STATE)/test-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench setup system clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(DEMO) ## set up, then run the whole path on real data (ARGS=--keep leaves it running)
	$(BIN)/freshet demo $(ARGS)

test: $(TEST) system ## set up, then run every test (PYTEST_ARGS=...)
	$(BIN)/python -m pytest --durations=15 $(PYTEST_ARGS)

lint: $(TEST) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(TEST) ## the benchmarks, each ending with a line of JSON
	$(BIN)/python -m bench.replay
	$(BIN)/python -m bench.freshness
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.redis_write

setup: $(DEMO) ## only set up what the demo needs

clean: ## remove what the targets made
	rm -rf $(VENV) .cache build *.egg-info

$(STATE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Freshet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $@

$(TORCH): | $(STATE)
	@echo "PyTorch: on Linux its wheel brings CUDA along, 5 GB and about two minutes, once for all targets."
	@echo "On a CPU-only machine, set TORCH_INDEX_URL to an index of CPU wheels to save both."
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	@touch $@

$(DEMO): $(TORCH)
	$(PIP) -e '.[demo]'
	@touch $@

$(TEST): $(DEMO)
	$(PIP) -e '.[test]'
	@touch $@

system:
	@tools/system-packages
