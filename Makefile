# Every target does its own set-up in .venv; needs Python 3.10 to 3.14 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SITE_READY := $(VENV)/.ready-docs
RUNS := runs
# for the packages, and for what builds them
PINNED := PIP_CONSTRAINT=.github/constraints.txt PIP_BUILD_CONSTRAINT=.github/constraints.txt
# figures 2, 3, 6 and 7 need runs with their weights (see each), so they are run by hand
NOTEBOOKS := $(wildcard nbs/[1-5]_*/*.ipynb nbs/*.ipynb nbs/experiments/table*.ipynb nbs/experiments/fig[145]_*.ipynb) \
  nbs/experiments/ablations.ipynb nbs/experiments/claims.ipynb nbs/experiments/train.ipynb
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
# threads that wait for one another sleep: beside other work, spinning ones take the core from whom they wait for (lesson 15)
export OMP_WAIT_POLICY ?= passive
.DEFAULT_GOAL := help
.PHONY: help demo smoke benchmark check test test-slow test-lowest coverage lint hooks lab export notebooks readme build docs docs-test

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24

$(READY): settings.ini setup.py .github/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1) and Python 3.10 to 3.14 is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PINNED) $(BIN)/python -m pip install -e '.[dev]'
	@# a kernel that runs on this machine alone need not warn about unencrypted sockets
	@mkdir -p $(VENV)/etc/ipython && echo 'c.IPKernelApp.log_level = "ERROR"' > $(VENV)/etc/ipython/ipython_kernel_config.py
	@touch $@

demo: $(READY)  ## train ResNet-18 with AttentionDrop on the embedded digits (no network, under 3 minutes)
	@mkdir -p $(RUNS)/demo
	@$(BIN)/papermill nbs/experiments/train.ipynb $(RUNS)/demo/run.ipynb -k python3 --no-progress-bar \
	  --stdout-file - -p out_dir $(RUNS) -p run_name demo
	@echo 'notebook       $(RUNS)/demo/run.ipynb'

PYTEST := -m pytest tests -q -n 2 --dist worksteal -p no:cacheprovider

lint: $(READY)  ## ruff on notebooks, tests and tools; mypy on the package
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint  ## before a commit: lint, notebooks and package in step, the quick tests (under 2 minutes)
	$(BIN)/python $(PYTEST) -m 'not slow and not whole'

test: $(READY)  ## run every notebook and every test but the slow ones
	$(BIN)/python $(PYTEST) --durations 5

test-slow: $(READY)  ## thousands of examples, dozens of kills
	$(BIN)/python $(PYTEST) -m slow --durations 5

test-lowest:  ## the quick tests with the oldest versions that settings.ini allows, in .venv-lowest; Python 3.10 or 3.11
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q uv
	@# (and warnings are no errors: old libraries use what is deprecated by now)
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python $(PYTEST) -m 'not slow and not whole' -W default

coverage: $(READY)  ## make test, and which lines of the package it does not reach
	$(BIN)/python $(PYTEST) --cov --cov-report=term-missing:skip-covered

hooks: $(READY)  ## once in a clone: git cleans notebooks, and merges them cell by cell (nbdev), and checks before a commit
	$(BIN)/nbdev_install_hooks
	$(BIN)/python -m pip install -q pre-commit && $(BIN)/pre-commit install

smoke: $(READY)  ## run the smoke grid, then draw every table and figure from it (minutes)
	$(BIN)/attentiondrop-sweep nbs/experiments/grids/smoke.yaml --out $(RUNS)/smoke --jobs 2 --redraw

benchmark: $(READY)  ## time the layer and the training loop on this machine (CPU: 6 minutes)
	@mkdir -p $(RUNS)
	$(BIN)/papermill nbs/experiments/benchmark.ipynb $(RUNS)/benchmark.ipynb -k python3 --no-progress-bar \
	  -p out_dir $(RUNS)/benchmark -p record $(RUNS)/benchmark.json
	@echo 'notebook       $(RUNS)/benchmark.ipynb'

lab: $(READY)  ## open JupyterLab at the front page of the book
	$(BIN)/jupyter lab nbs --LabApp.default_url=/lab/tree/index.ipynb

export: $(READY)  ## clean the notebooks and write the package from them
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export

notebooks: $(READY)  ## run lessons, tables and curves top to bottom and keep their outputs
	$(BIN)/jupyter nbconvert --execute --inplace $(NOTEBOOKS)
	$(BIN)/jupyter nbconvert --to notebook --inplace --CoalesceStreamsPreprocessor.enabled=True $(NOTEBOOKS)
	$(MAKE) export readme

readme: $(READY)  ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

build: $(READY)  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build

$(SITE_READY): $(READY) tools/docs.py
	$(PINNED) $(BIN)/python -m pip install -e '.[dev,docs]'
	$(BIN)/python tools/docs.py assets
	@touch $@

docs: $(SITE_READY)  ## write the web site of the book into _docs/ (Python 3.11 or newer; nothing is executed)
	$(BIN)/python tools/docs.py build

docs-test: docs  ## look at every page of the site in a Chromium, which is installed where there is none
	@$(BIN)/python tools/docs.py browser
	TEST_SITE=1 $(BIN)/python -m pytest tests/site -q -n 2 --dist worksteal -p no:cacheprovider
