# Two commands do everything: `make demo` and `make test`. Both build .venv first if it is not there; the second time that costs nothing.
# PYTHON chooses the interpreter the environment is made with: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS ?= training generation scoring data adapter startup gpu
BENCH_TABLE ?= tests/benchmarks/latest.md

.PHONY: help demo test chaos nightly lint audit bench clean

help:
	@echo "make demo    the whole pipeline on generated data, on this machine"
	@echo "make test    lint, import rules, unit, component and system tests"
	@echo "make chaos   every fault of tests/FAULTS.md: kill anything, nothing is lost (about half an hour)"
	@echo "make nightly what takes minutes: the quick study, every table"
	@echo "make lint    ruff, import rules and types only"
	@echo "make audit   known vulnerabilities of the locked packages; warns, never fails"
	@echo "make bench   speed and memory against peers and limits (about 17 minutes); BENCHMARKS='training data' for some of them"
	@echo "make clean   remove the environment and caches (never .dora, which holds results)"

demo: $(READY)
	$(BIN)/dora demo

# Two workers, one thread each: threads that contend are ten times slower. tests/conftest.py groups them.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

chaos: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder -m "fault or chaos"

nightly: $(READY)
	$(BIN)/python -m pytest -m nightly --timeout 3600

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

audit: $(READY)
	@timeout 120 $(BIN)/python -m pip_audit --no-deps --disable-pip -r requirements.lock --progress-spinner off --timeout 10 \
	  || echo "warning: the audit found something, or could not reach the advisories; see above"

# TRL is the peer of the training step alone: installed for this benchmark, beside the lock, without its dependencies.
bench: $(READY)
	@$(BIN)/python -c 'import trl' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps trl==1.16.0
	@rm -f $(BENCH_TABLE)
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks.bench_$$name --save $(BENCH_TABLE); done
	@echo "tables: $(BENCH_TABLE)"

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last: an interrupted installation continues, a complete one is skipped.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@rm -f $@
	@echo "installing into .venv (about two minutes, 2.4 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
