# `make` lists the targets. Everything runs in .venv, which each target sets up when it has to.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo demo-kafka test test-fast simulate check format bench bench-ray nexmark docs build lock audit clean python kafka browser

# Tests start hundreds of processes: each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
INSTALLED := $(VENV)/.installed
ifeq ($(UV),)
PIP := $(BIN)/python -m pip --disable-pip-version-check
else
PIP := $(UV) pip
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
endif

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## set up .venv with everything a contributor needs (PYTHON=python3.12 to choose)

demo: $(INSTALLED) ## the main example: a job is killed by SIGKILL, and nothing is lost or doubled (DASHBOARD=1: and goes on)
	$(BIN)/python -m streamactors demo $(if $(DASHBOARD),--dashboard)

demo-kafka: $(INSTALLED) kafka ## the same on a real Kafka broker, which it starts (Java 17, Maven)
	$(BIN)/python -m examples.kafka_totals

# Those that tests/conftest.py puts first begin first.
BY_FILE := --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) kafka browser ## all tests, on a real Kafka broker (Java 17, Maven) and in a real browser (Chromium) too
	$(BIN)/python -m pytest -n auto $(BY_FILE) -m "not kafka and not kill and not ray"
	$(BIN)/python -m pytest -n 2 $(BY_FILE) -m "kafka or kill or ray"

test-fast: $(INSTALLED) ## the tests that need neither Kafka nor killed processes nor patience
	$(BIN)/python -m pytest -q -n auto --hypothesis-profile=random -m "not kafka and not kill and not ray and not slow"

SEEDS ?= 2000
FIRST ?= 0

simulate: $(INSTALLED) ## whole jobs on virtual time under seeded faults (SEEDS=20000 for more, FIRST= to begin elsewhere)
	$(BIN)/python -m streamactors.testing.simulation --seeds $(SEEDS) --first $(FIRST)

check: $(INSTALLED) ## ruff, mypy --strict, pyright over the typing tests, the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(INSTALLED) ## let ruff sort imports and format the code
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) kafka ## records per second, beside a plain Python loop doing the same (Java 17, Maven)
	$(BIN)/python -m benchmarks.run

bench-ray: $(INSTALLED) ## several workers on a Ray of this machine: throughput, edges, recovery (about five minutes, two cores)
	$(BIN)/python -m benchmarks.scale_out

NEXMARK ?= 100000

nexmark: $(INSTALLED) ## the queries of Nexmark: records per second, each beside an oracle (NEXMARK=1000000 events for more)
	$(BIN)/python -m benchmarks.nexmark --events $(NEXMARK)

docs: $(INSTALLED) ## check the documents, and make the site of them: build/site/index.html
	$(BIN)/python -m pytest -q tests/structure/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build: $(INSTALLED) ## the wheel and the source archive, into dist/
	$(BIN)/python -m build --no-isolation

audit: python ## are there known defects in the pinned versions? asks PyPI; no answer is no pass
	$(PYTHON) .ci/audit

lock: python ## refresh constraints.txt: the newest versions that pyproject.toml allows
	PYTHON=$(PYTHON) .ci/lock

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov build dist var
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# hatchling is one of the pinned tools, so that building the package fetches nothing unpinned.
$(INSTALLED): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory python
ifeq ($(UV),)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt --upgrade pip
else
	@test -x $(BIN)/python || $(UV) venv -q --python $(PYTHON) $(VENV)
endif
	$(PIP) install -q -c constraints.txt --group dev
	$(PIP) install -q -c constraints.txt --no-build-isolation -e .
	@touch $@

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "streamactors needs Python 3.11 or newer as $(PYTHON); to choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
ifeq ($(UV),)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) can't make a virtual environment: apt install python3-venv (or install uv)" >&2; exit 1; }
endif

# Before the tests rather than in the middle of them: what is missing is said at once, and the jars are fetched.
kafka: $(INSTALLED)
	@$(BIN)/python -c 'from streamactors.testing.kafka_jars import main; main()'

# The same for Chromium, in which the tests look at the dashboard. CHROMIUM=/path names another one.
browser:
	@test -n "$(CHROMIUM)" || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
		else \
			echo "the tests of the dashboard need Chromium: apt install chromium" >&2; exit 1; \
		fi; }
