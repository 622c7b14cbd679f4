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
SEEDS ?= 1000
FIRST ?= 0
BENCHES := replay freshness broker scale redis_write reader live_index
# Of a log, or of half an hour: their own docstrings say how to run them.
LONG_BENCHES := ablation amount origins train_scale snapshot recovery takeover

# A stamp carries a checksum of what it was made from: nothing is installed twice, and a changed pin is.
STATE := $(VENV)/.state
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
TORCH := $(STATE)/torch-$(shell sed -n 's/^torch==//p' constraints.txt)
DEMO := $(STATE)/demo-$(KEY)
TEST := $(STATE)/test-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help demo test check fuzz lint bench chaos mutants sim setup clean system

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(DEMO) ## set up, then run the whole path on real data (ARGS=--keep leaves it running)
	$(BIN)/freshet demo $(ARGS)

test: ## set up, then run every test (PYTEST_ARGS=... chooses)
	@tools/system-packages & packages=$$!; $(MAKE) --no-print-directory $(TEST); set_up=$$?; wait $$packages; exit $$set_up
	tools/run-tests $(BIN)/python $(PYTEST_ARGS)

check: $(TEST) ## the tests that need nothing but Python: before every commit
	$(BIN)/python -m pytest -m 'not integration' tests/unit tests/property $(PYTEST_ARGS)

fuzz: $(TEST) ## the fuzz tests for an hour or so (FUZZ_FACTOR=n: n times the examples of make test)
	FUZZ_FACTOR=$${FUZZ_FACTOR:-100} $(BIN)/python -m pytest tests/fuzz $(PYTEST_ARGS)

sim: $(TEST) ## the simulator over seeds (SEEDS=1000 FIRST=0)
	$(BIN)/freshet-sim --seeds $(SEEDS) --first-seed $(FIRST) $(ARGS)

mutants: $(TEST) ## break the system on purpose: the simulator has to notice (ARGS="--only TEXT")
	$(BIN)/python -m tools.mutants $(ARGS)

lint: $(TEST) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(TEST) ## the benchmarks, each ending with a line of JSON
	@for name in $(BENCHES); do echo "== bench.$$name"; $(BIN)/python -m bench.$$name || exit 1; done

chaos: $(TEST) system ## faults at random on real servers, with a report (ARGS='--minutes 60 --seed 7')
	$(BIN)/python -m tests.integration.chaos $(ARGS)

setup: $(DEMO) ## only set up what the demo needs

clean: ## remove what the targets made, .venv included
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find bench freshet tests tools -name __pycache__ -prune -exec rm -rf {} +

$(STATE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1 | head -n 1); \
	  echo "Freshet needs Python 3.11 or newer, and $(PYTHON) is: $$found"; \
	  echo "Name another: make PYTHON=python3.12"; exit 1; }
	@echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "No virtual environment could be made: on Debian and Ubuntu, install python3-venv"; exit 1; }
	@mkdir -p $@

# From another index torch comes alone: such an index need not hold its dependencies in the pinned versions,
# which the next step takes from the usual one.
$(TORCH): | $(STATE)
	@rm -f $(STATE)/torch-*
ifeq ($(TORCH_INDEX_URL),)
	@echo "PyTorch: on Linux its wheel brings CUDA along, 5 GB and about two minutes, once for all targets."
	@echo "On a CPU-only machine, set TORCH_INDEX_URL to an index of CPU wheels to save both."
	$(PIP) torch
else
	$(PIP) --no-deps --index-url '$(TORCH_INDEX_URL)' torch
endif
	@touch $@

$(DEMO): $(TORCH)
	@rm -f $(STATE)/demo-* $(STATE)/test-*
	$(PIP) -e '.[demo]'
	@touch $@

$(TEST): $(DEMO)
	@rm -f $(STATE)/test-*
	@# Compiled loops, which every group of tests would wait for, beside the installation, which waits for the network.
	@$(BIN)/python -m freshet.stream.warming & loops=$$!; \
	  echo "$(PIP) -e '.[test]'"; $(PIP) -e '.[test]'; set_up=$$?; wait $$loops; exit $$set_up
	@touch $@

system:
	@tools/system-packages
