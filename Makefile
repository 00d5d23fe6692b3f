# Every command of the project; `make help` lists them. Each sets up what is missing first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
# pip's scripts through their Python: the line in them that names it breaks at some paths
SCRIPT := $(BIN)/python $(BIN)
PYTHON3 = $(if $(shell command -v python3 2>/dev/null),python3,$(error sagascope: no python3 on the PATH: install Python 3.11 (Debian 12: apt install python3.11-venv)))
# Arguments handed through, e.g. make demo ARGS="--for 60s", make test ARGS="-k events"
ARGS ?=
# Where Dagster's UI listens
PORT := 3000

LOCK := $(BIN)/uv pip compile pyproject.toml --python-version 3.11 --all-extras --group app --group dev \
	--generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock"

DOWN := if [[ -x $(BIN)/sagascope ]]; then $(BIN)/sagascope down; else echo "Nothing is set up here: nothing to stop"; fi

.PHONY: help setup demo test check format lock dagster bench up down clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: ## Bring the virtual environment and the jars, unless they are there
	@$(PYTHON3) pipelines/bootstrap.py

demo: setup ## Broker, real sagas, PyFlink job, live table; ends at Ctrl-C, or ARGS="--for 60s"
	@$(BIN)/sagascope demo $(ARGS)

test: setup ## Run every test
	@$(SCRIPT)/pytest $(ARGS)

check: setup ## ruff, mypy, import-linter, lock file up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(SCRIPT)/mypy
	$(SCRIPT)/lint-imports
	@cp requirements.lock .sagascope/requirements.lock
	@$(LOCK) --output-file .sagascope/requirements.lock \
		|| { echo "requirements.lock was not compared: resolving pyproject.toml failed, see above (the network?)"; exit 1; }
	@cmp --silent requirements.lock .sagascope/requirements.lock \
		|| { echo "requirements.lock is not up to date with pyproject.toml: run make lock"; exit 1; }

format: setup ## Format the code, and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## Write requirements.lock anew from pyproject.toml; versions stay where they can
	$(LOCK) --output-file requirements.lock

dagster: setup ## Open Dagster's UI, on a week of made-up history where there is none, http://127.0.0.1:3000, or PORT=3001
	@! (: </dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null \
		|| { echo "sagascope: port $(PORT) is taken: make dagster PORT=$$(($(PORT) + 1))"; exit 1; }
	@$(BIN)/sagascope seed --if-empty
	@mkdir -p .sagascope/dagster && cp dagster_project/dagster.yaml .sagascope/dagster/
	@DAGSTER_HOME="$$PWD/.sagascope/dagster" $(SCRIPT)/dagster dev -m dagster_project.definitions -h 127.0.0.1 -p $(PORT) $(ARGS)

bench: setup ## Run the benchmarks; see bench/RESULTS.md
	@$(BIN)/python bench/drain.py $(ARGS)

up: setup ## Start the local Kafka broker
	@$(BIN)/sagascope up

down: ## Stop the local Kafka broker
	@$(DOWN)

clean: ## Delete all local state: topic, tables, checkpoints, logs (not the environment, not the jars)
	@home=$$(realpath -m -- "$${SAGASCOPE_HOME-.sagascope}" 2>/dev/null); \
	[[ -n $$home && $$home != / ]] || { echo "sagascope: SAGASCOPE_HOME='$$SAGASCOPE_HOME' is no folder to clean"; exit 1; }; \
	[[ -z $${SAGASCOPE_HOME+set} ]] || echo "SAGASCOPE_HOME is set: cleaning $$home"; \
	lock=$$home/checkpoints/analytics/lock; \
	if [[ -e $$lock ]]; then \
		exec 9<"$$lock" && flock -n 9 || { echo "sagascope: the job runs (pid $$(<"$$lock")): stop it, then make clean"; exit 1; }; \
	fi; \
	$(DOWN) && rm -rf -- "$$home"/{kafka,lake,checkpoints,data-docs,fan-out,logs,tmp,workload.json} .sagascope/dagster
