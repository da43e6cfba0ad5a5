# The two commands a new user needs: `make run` and `make test`. Everything below installs into .venv only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How long each target is fuzzed.
FUZZ_SECONDS ?= 20
SOURCES := $(shell find protos -name '*.proto' 2>/dev/null)

# What `make bench-gateways` is given, for example "--requests 100000".
GATEWAYS ?=

# What `make faults` is given, for example "--only 1,9 --shard 0/4 --state DIR".
FAULTS ?=

.PHONY: run demo test conformance faults fuzz lint protos bench bench-gateways mutation clean setup

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml hatch_build.py $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "teemesh needs Python 3.11 or later: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## starts the mesh, asks it one question, verifies the answer, and keeps serving until Ctrl-C
	@$(BIN)/teemesh up --demo

demo: $(STAMP) ## the same without a person: stops the mesh afterwards; fails if any check fails
	@$(BIN)/teemesh up --demo --exit

# For two cores. First what often waits, three beside each other; then what starts whole meshes, which each keep about
# one core busy, two beside each other.
test: $(STAMP)
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --ignore tests/faults --ignore tests/mesh
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/faults tests/mesh

conformance: $(STAMP) ## checks against outside truth; TEEMESH_FIXTURES must name its folder
	@test -d "$$TEEMESH_FIXTURES" || { echo "TEEMESH_FIXTURES does not name a folder of fixtures"; exit 1; }
	@$(BIN)/python -m pytest -m conformance

faults: $(STAMP) ## the ledger's twenty faults at length: hours; FAULTS says which, what part of them, and where it goes on
	@$(BIN)/python -m tests.faults.ledger $(FAULTS)

fuzz: $(STAMP) ## the parsers of foreign evidence, FUZZ_SECONDS each; installs atheris
	@$(BIN)/python -c 'import platform, sys; sys.exit((not (3, 11) <= sys.version_info < (3, 14) or (sys.platform, platform.machine()) != ("linux", "x86_64")) and "atheris has no wheel for this Python: fuzzing needs CPython 3.11 to 3.13 on x86-64 Linux")'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r constraints-fuzz.txt
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code > /dev/null || { echo "buf format: protos are not formatted (buf format -w)"; exit 1; }

protos: $(STAMP)
	@$(BIN)/python hatch_build.py

mutation: $(STAMP) ## takes every check of libs/tee, identity and keys away, one at a time, and sees bad evidence get past it
	@$(BIN)/python -m tests.mutation
	@$(BIN)/python -m tests.mutation --relays

bench: $(STAMP)
	@$(BIN)/python -m tests.bench

bench-gateways: $(STAMP) ## the router beside other gateways, which are installed in an environment of their own
	@test -x .venv-gateways/bin/python || $(PYTHON) -m venv .venv-gateways
	@.venv-gateways/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -r constraints-gateways.txt
	@$(BIN)/python -m tests.bench.gateways --rivals .venv-gateways $(GATEWAYS)

clean:
	rm -rf $(VENV) .venv-gateways gen .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
