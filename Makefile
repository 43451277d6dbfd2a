# Targets are documented by their `##` comments; `make` prints them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
# Where pip finds CPU builds of torch; empty uses your configured indexes.
# On Linux x86-64 without it, pip may choose the CUDA build (several GB):
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-fast check format bench-policy bench-experiments bench-forecast pretrain-lstm bench-lstm up down status clean pr

help: ## Print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(STAMP) ## Create .venv and install everything

$(STAMP): pyproject.toml layers/markserve/pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(BIN)/pip install --disable-pip-version-check -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -q -e 'layers/markserve[torch]' -e '.[dev,simulate]'
	@touch $@

demo: setup ## Run the whole system on this machine under load; RT_MAX=, RATE=, SEED= override
	$(BIN)/markserve demo $(if $(RT_MAX),--rt-max $(RT_MAX)) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED))

test: setup check ## Set up what is needed, then run every check and test
	$(BIN)/python -m pytest

test-fast: setup ## Tests without the ones that start the whole local system
	$(BIN)/python -m pytest -m 'not system'

check: setup ## Lint, format check, types, template; edits nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cfn-lint template.yaml

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pretrain-lstm: setup ## Make the LSTM's shipped weights again, from generated workloads (3 minutes)
	$(BIN)/python -m benchmarks.pretrain_lstm

bench-lstm: setup ## Judge the LSTM on the developers' traces, and time it
	$(BIN)/python -m benchmarks.lstm compare
	$(BIN)/python -m benchmarks.lstm speed

bench-forecast: setup ## Judge every forecaster on the developers' traces (half an hour; QUICK=1: two days of each)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[bench]'
	nice $(BIN)/python -m benchmarks.forecast $(if $(QUICK),--quick,--out docs)

bench-policy: setup ## Policies on the developers' traces, resumable; long. JOBS=, ARGS= (see python -m benchmarks.policy --help)
	$(BIN)/python -m benchmarks.policy $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

bench-experiments: setup ## The paper's evaluation, resumable; TRACE= is the recorded load (else generated), JOBS=, ARGS=
	$(BIN)/markserve experiments all --out .markserve/experiments --resume $(if $(TRACE),--trace $(TRACE)) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)
	$(BIN)/python -m benchmarks.results_page .markserve/experiments

up: setup ## Start the local system and keep it running
	$(BIN)/markserve up

down: ## Stop the local system
	$(BIN)/markserve down

status: ## Show the local system
	$(BIN)/markserve status

clean: ## Remove the venv, caches and local state
	rm -rf $(VENV) .markserve .mypy_cache .ruff_cache .pytest_cache .hypothesis
