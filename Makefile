# Two commands: `make train` and `make test`. `make help` lists the others.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A folder of local wheels wins; otherwise uv picks the torch build for this machine's GPU, or none.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH_BACKEND ?= $(if $(strip $(UV_FIND_LINKS)),,auto)
# Compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process else compiles torch and Lightning for itself.
UV_PIP  = $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) -c constraints.txt
# One process a core, at most four (tests/conftest.py says which tests do not run side by side); the ten slowest are named.
PYTEST  = $(BIN)/python -m pytest -n auto --durations=10
# Of `make bench`: names of scripts in benchmarks/; none for all
BENCH ?=
# Overrides of `make train`, for example ARGS="loss=triplet dataset=omniglot"
ARGS ?=

# Of the tables: LOSSES="arcface contrastive"; HYPERPARAMETERS=paper skips the searches; LAUNCHER=slurm; TRIALS=20; RUNS=5;
# JOBS=2 trains two losses side by side; OVERRIDES are any of train.py.
SETTINGS := cub200 cars196 sop cub200_batch256
LOSSES ?=
HYPERPARAMETERS ?= search
LAUNCHER ?=
TRIALS ?=
RUNS ?=
JOBS ?= 1
OVERRIDES ?=
STUDY = $(BIN)/python -m mlrc_lightning study $(1) $(OVERRIDES) --hyperparameters $(HYPERPARAMETERS) --jobs $(JOBS) \
	$(if $(LOSSES),--losses $(LOSSES)) $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(TRIALS),--trials $(TRIALS)) \
	$(if $(RUNS),--runs $(RUNS))
# a loss that failed keeps no table from being rendered, and then fails the target
RENDER = $(BIN)/python -m mlrc_lightning table $(1) $(OVERRIDES) $(if $(TRIALS),max_trials=$(TRIALS)) \
	$(if $(RUNS),num_runs=$(RUNS)) --source $(HYPERPARAMETERS)
# of a signal, make tells its shell alone, and a shell tells nobody; a study that was stopped leaves nothing to be rendered
RUN_STUDY = trap 'kill -TERM $$study' HUP INT TERM; $(call STUDY,$(1)) $(DRY_RUN) & study=$$!; \
	failed=0; wait $$study || failed=$$?; while kill -0 $$study 2>/dev/null; do failed=0; wait $$study || failed=$$?; done; \
	[ $$failed != 75 ] || exit 75
# make -n runs the study too (the plus sign), which then only prints its commands
DRY_RUN = $(if $(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))),--dry-run)

.DEFAULT_GOAL := help
.PHONY: help train test check nightly test-all test-hydra-next coverage bench bench-search gpu-wheels clean tables demo demo-frozen report

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {n = split($$1, names, " "); for (i = 1; i < n; i++) printf "  make %s\n", names[i]; \
		printf "  make %-26s %s\n", names[n], $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.installed  ## Install, then train the default on the embedded glyphs: 4 folds, tested, a table (ARGS="loss=triplet")
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.installed-test  ## Install the test extra, run the fast tests
	$(PYTEST)

check: $(VENV)/.installed-test  ## Lint and types: ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

nightly: $(VENV)/.installed-test  ## Only the long variants of tests that .ci/run has in a short form (docs/testing.md)
	@echo "Only the tests marked nightly; make test-all runs these and all others"
	$(PYTEST) -m nightly

test-all: $(VENV)/.installed-test  ## All tests that this machine can run; the others say why not
	$(PYTEST) -m ""

coverage: $(VENV)/.installed-test  ## Line and branch coverage of all tests but those on real data and the nightly ones
	$(PYTEST) -m "not real_data and not nightly" --cov --cov-report=term

bench: $(VENV)/.installed-test  ## All benchmarks beside their peers, into benchmarks/RESULTS.md (two hours; BENCH="metrics data" runs some)
	$(UV_PIP) -e '.[benchmarks]'
	$(UV_PIP) --no-deps 'open-metric-learning>=4'
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-search: $(VENV)/.installed-test  ## Search quality against Ax itself, Optuna and random search (an hour; resumes), and what the sweeper costs
	$(UV_PIP) -e '.[benchmarks]'
	$(BIN)/python benchmarks/search_quality.py run
	$(BIN)/python benchmarks/search_quality.py race
	$(BIN)/python benchmarks/search_quality.py report
	$(BIN)/python benchmarks/sweeper_overhead.py

gpu-wheels: $(VENV)/.installed-test  ## What benchmarks/gpu_check.py needs on a GPU machine without a network, into dist/gpu_wheels: docs/gpu_check.md
	$(BIN)/python benchmarks/gpu_wheels.py

test-hydra-next: | $(BIN)/uv  ## The sweeper's fast tests on the newest pre-release of Hydra 1.4, in an environment of its own
	test -x $(VENV)-hydra-next/bin/python || $(PYTHON) -m venv $(VENV)-hydra-next
	$(BIN)/uv pip install -q --python $(VENV)-hydra-next/bin/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND)) \
		-c constraints.txt -e '.[test]' 'hydra-core>=1.4.0rc1' 'omegaconf>=2.4.0rc1'
	$(VENV)-hydra-next/bin/python -m pytest tests/sweeper -W default

tables: $(SETTINGS:%=table-%) table-hyperparameters table-reported table-toy  ## All tables of the paper; runs what is missing

table-cub200 table-cars196 table-sop table-cub200-batch256: table-%: $(VENV)/.installed  ## Run what is missing of a setting, render its table (LOSSES= HYPERPARAMETERS=paper LAUNCHER=slurm TRIALS= RUNS= JOBS=)
	+@$(call RUN_STUDY,$(subst -,_,$*)); \
	$(if $(DRY_RUN),echo '$(call RENDER,$(subst -,_,$*))',$(call RENDER,$(subst -,_,$*))) && exit $$failed

plan-cub200 plan-cars196 plan-sop plan-cub200-batch256 plan-demo: plan-%: $(VENV)/.installed  ## How many models are left to train, and how long they take
	@$(call STUDY,$(subst -,_,$*)) --plan

table-hyperparameters table-reported table-toy: table-%: $(VENV)/.installed  ## Our optima beside the paper's; what other papers reported; the paper's Tables 1, 2, 3 and 7
	$(BIN)/python -m mlrc_lightning table $*

# the picture beside the table in the README: the figure of the protocol that the table is of
PICTURE = $(BIN)/python -m mlrc_lightning figure figure_2b_map_at_r --format png && \
	cp outputs/figures/$$(sed -n 's/.*"protocol": "\(.*\)".*/\1/p' outputs/tables/demo.manifest.json | head -1)/figure_2b_map_at_r_search.png docs/demo.png
demo: JOBS = 2
demo: $(VENV)/.installed  ## All 14 losses on the embedded glyphs, from nothing to the table in the README (15 minutes on 2 cores; resumes)
	+@$(call RUN_STUDY,demo); \
	$(if $(DRY_RUN),echo '$(call RENDER,demo) --into README.md',$(call RENDER,demo) --into README.md && $(PICTURE)) && exit $$failed

# the Grocery Store Dataset: a folder or a .tar
GROCERY ?= $(or $(MLRC_SHARED),../shared)/data/grocery_128.tar
PICTURE_OF_FROZEN = $(BIN)/python -m mlrc_lightning figure optimisation figure_2b_map_at_r --format png && \
	cp outputs/figures/$$(sed -n 's/.*"protocol": "\(.*\)".*/\1/p' outputs/tables/demo_frozen.manifest.json | head -1)/figure_2b_map_at_r_search.png docs/demo_frozen.png
demo-frozen: JOBS = 2
demo-frozen: $(VENV)/.installed  ## A proxy of the protocol on photos: frozen trunk, all 14 losses, 50 trials and 10 runs each (resumes; GROCERY=FOLDER)
	$(UV_PIP) -e '.[demo]'
	$(BIN)/python examples/demo_frozen.py $(GROCERY) data
	+@$(call RUN_STUDY,demo_frozen); \
	$(if $(DRY_RUN),echo '$(call RENDER,demo_frozen) --into docs/frozen.md',$(call RENDER,demo_frozen) --into docs/frozen.md && $(PICTURE_OF_FROZEN)) && exit $$failed

report: $(VENV)/.installed  ## A static site of all results so far: outputs/report/index.html
	test -e outputs/figures/inputs/toy.npz || $(BIN)/python -m mlrc_lightning figure figure_1
	$(BIN)/python -m mlrc_lightning report

clean:  ## Remove the virtual environment and caches; results and data stay
	rm -rf $(VENV) $(VENV)-hydra-next .mypy_cache .ruff_cache .pytest_cache

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_PIP) -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV_PIP) -e '.[test,slurm,browser]'
	touch $@ $(VENV)/.installed
