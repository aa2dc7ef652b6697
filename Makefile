# Everything here runs in .venv, which is made on first use and remade when pyproject.toml changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNS := .venv/.runs
QUICK := .venv/.quick
STAMP := .venv/.installed
# One more than there are cores, since tests wait for processes; four at most.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n < 3 ? n + 1 : 4 )))

.DEFAULT_GOAL := help
.PHONY: help demo quick test check lint format stubs reference mutants fuzz clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNS) ## See Shoal work: ingest, cluster and search a bundled collection
	$(BIN)/shoal demo

quick: $(QUICK) ## Run the tests that need no PyTorch and no Spark, in about two minutes
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --quick -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# A file's tests stay in one process, the longest files come first, and Spark's tests share one
# cluster: tests/support/distribution.py. OpenMP's threads are
# not to spin while they wait: the cores have other processes.
test: $(STAMP) ## Run the tests, in up to four processes
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint ## Format, lint, types, import contracts, generated stubs and reference
	$(BIN)/mypy
	$(BIN)/mypy proto/generate.py deploy/healthcheck.py
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m shoal.app.reference --check

lint: $(STAMP) ## Format and lint only
	$(BIN)/ruff format --check
	$(BIN)/ruff check

format: $(STAMP) ## Format, and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

stubs: $(STAMP) ## Regenerate shoal/v1 from proto/
	$(BIN)/python proto/generate.py

reference: $(STAMP) ## Rewrite docs/reference.md from options, metrics and errors
	$(BIN)/python -m shoal.app.reference

mutants: $(STAMP) ## Count the one-line sabotages that the tests notice, module by module
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(BIN)/python tests/mutants.py

fuzz: $(STAMP) ## Try the targets for data by chance with 50 times as many examples, other ones each time
	SHOAL_TEST_FUZZ=50 $(BIN)/python -m pytest -m fuzz -n auto --maxprocesses 4

clean: ## Remove the environment and all caches
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(RUNS): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Shoal needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu]'
	@touch $@

$(QUICK): $(RUNS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,quick]'
	@touch $@

# The tests export models for real: PyTorch, about 6 GB, comes with this one only.
$(STAMP): $(RUNS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,dev]'
	@touch $(QUICK) $@
