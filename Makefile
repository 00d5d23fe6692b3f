# Every command of the project; `make help` lists them. Each sets up what is missing first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
PYTHON3 := $(or $(shell command -v python3 2>/dev/null),$(error sagascope: no python3 on the PATH: install Python 3.11 (Debian 12: apt install python3.11-venv)))
# Arguments handed through, e.g. make demo ARGS="--for 60s", make test ARGS="-k events"
ARGS ?=

LOCK := $(BIN)/uv pip compile pyproject.toml --python-version 3.11 --all-extras --group app --group dev \
	--generate-hashes --no-emit-index-url --quiet --custom-compile-command "make lock"

.PHONY: help setup demo test check format lock dagster bench up down clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: ## Bring the virtual environment and the jars, unless they are there
	@$(PYTHON3) pipelines/bootstrap.py

demo: setup ## Broker, real sagas, PyFlink job, live table; ends at Ctrl-C, or ARGS="--for 60s"
	@$(BIN)/sagascope demo $(ARGS)

test: setup ## Run every test
	@$(BIN)/pytest $(ARGS)

check: setup ## ruff, mypy, import-linter, lock file up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@cp requirements.lock .sagascope/requirements.lock && $(LOCK) --output-file .sagascope/requirements.lock \
		&& diff --brief requirements.lock .sagascope/requirements.lock \
		|| { echo "requirements.lock is not up to date with pyproject.toml: run make lock"; exit 1; }

format: setup ## Format the code, and mend what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## Write requirements.lock anew from pyproject.toml; versions stay where they can
	$(LOCK) --output-file requirements.lock

dagster: setup ## Open Dagster's UI on the demo's data, http://127.0.0.1:3000
	@mkdir -p .sagascope/dagster && cp dagster_project/dagster.yaml .sagascope/dagster/
	@DAGSTER_HOME=$(CURDIR)/.sagascope/dagster $(BIN)/dagster dev -m dagster_project.definitions -h 127.0.0.1 -p 3000 $(ARGS)

bench: setup ## Run the benchmarks; see bench/RESULTS.md
	@$(BIN)/python bench/drain.py $(ARGS)

up: setup ## Start the local Kafka broker
	@$(BIN)/sagascope up

down: setup ## Stop the local Kafka broker
	@$(BIN)/sagascope down

clean: down ## Delete all local state: topic, tables, checkpoints, logs (not the environment, not the jars)
	@rm -rf .sagascope/kafka .sagascope/lake .sagascope/checkpoints .sagascope/logs .sagascope/dagster .sagascope/*.json
