# Two commands: `make train` and `make test`. `make help` lists the others.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A folder of local wheels wins; otherwise uv picks the torch build for this machine's GPU, or none.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH_BACKEND ?= $(if $(strip $(UV_FIND_LINKS)),,auto)
UV_PIP  = $(BIN)/uv pip install -q --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) -c constraints.txt
# Overrides of `make train`, for example ARGS="loss=triplet dataset=omniglot"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help train test check test-all test-hydra-next coverage bench-search clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.installed  ## Install, then train the default on the embedded glyphs: 4 folds, tested, a table (ARGS="loss=triplet")
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed-test  ## Install the test extra, run the fast tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test  ## Lint and types: ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-all: $(VENV)/.installed-test  ## All tests that this machine can run; the others say why not
	$(BIN)/python -m pytest -m ""

coverage: $(VENV)/.installed-test  ## Line and branch coverage of all tests but those on real data
	$(BIN)/python -m pytest -m "not real_data" --cov --cov-report=term

bench-search: $(VENV)/.installed-test  ## Search quality against Ax itself, Optuna and random search (an hour; resumes), and what the sweeper costs
	$(UV_PIP) -e '.[benchmarks]'
	$(BIN)/python benchmarks/search_quality.py run
	$(BIN)/python benchmarks/search_quality.py race
	$(BIN)/python benchmarks/search_quality.py report
	$(BIN)/python benchmarks/sweeper_overhead.py

test-hydra-next: | $(BIN)/uv  ## The sweeper's fast tests on the newest pre-release of Hydra 1.4, in an environment of its own
	test -x $(VENV)-hydra-next/bin/python || $(PYTHON) -m venv $(VENV)-hydra-next
	$(BIN)/uv pip install -q --python $(VENV)-hydra-next/bin/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) \
		-c constraints.txt -e '.[test]' 'hydra-core>=1.4.0rc1' 'omegaconf>=2.4.0rc1'
	$(VENV)-hydra-next/bin/python -m pytest tests/sweeper -W default

clean:  ## Remove the virtual environment and caches; results and data stay
	rm -rf $(VENV) $(VENV)-hydra-next .mypy_cache .ruff_cache .pytest_cache

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_PIP) -e '.[test,slurm]'
	touch $@ $(VENV)/.installed
