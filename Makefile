# Everything a newcomer needs; `make help` lists it.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
EXPERIMENT ?= movielens_m3oe
SEEDS ?= 5
WORKERS ?= 1
BENCH ?=
DEMO_DIR ?= demo
RUNS_DIR ?= runs

.PHONY: help demo test lint format bench reproduce lock clean env
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(VENV)/.installed  ## the Python environment, from requirements.lock

# A stamp, so that the lock is installed once and again only when it changes.
$(VENV)/.installed: requirements.lock setup.py
	@command -v $(PYTHON) >/dev/null 2>&1 || command -v python3 >/dev/null || \
	  { echo "make: Python 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@P=$$(command -v $(PYTHON) || command -v python3); \
	  $$P -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: Python 3.11 is needed; $$P is another version. Set PYTHON=..."; exit 1; }; \
	  test -x $(BIN)/python || $$P -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.4"
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: env  ## raw synthetic log to served scores, end to end, in minutes
	@$(BIN)/python -m serving.demo --out $(DEMO_DIR)

test: env  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: env  ## rewrite the code in the house form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env  ## benchmarks: BENCH="reader methods", all without it; into docs/results
	@$(BIN)/python -m tests.benchmarks.report $(BENCH)

reproduce: env  ## a published comparison: DATA=<raw folder> EXPERIMENT=<name> SEEDS=5
	$(BIN)/python -m models.reproduce --experiment $(EXPERIMENT) \
	  $(if $(DATA),--raw_dir $(DATA)) $(if $(SEARCH),--search $(SEARCH)) \
	  --runs_dir $(RUNS_DIR) --seeds $(SEEDS) --workers $(WORKERS)

lock: env  ## compile requirements.lock anew from setup.py
	$(BIN)/uv pip compile setup.py --extra dev --generate-hashes --python-version 3.11 \
	  --output-file requirements.lock --custom-compile-command "make lock"

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(DEMO_DIR) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
