# Every target sets up what it needs in .venv by itself: Python 3.11+ and make are enough.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

SEEDS ?= 1000
FIRST ?= 0

.PHONY: help demo test lint sim sim-ci sim-mutants soak bench bench-graph clean

help:
	@echo "make demo    three nodes, a real graph, a killed leader: see it work (under 3 minutes)"
	@echo "make test    the whole test suite (under 10 minutes)"
	@echo "make lint    formatting, types, layers"
	@echo "make sim     whole clusters under virtual time, through all faults: SEEDS=1000 FIRST=0"
	@echo "make sim-ci  a minute of it with fresh seeds, and every seed that failed once"
	@echo "make sim-mutants   each rule of safety broken on purpose: who notices, how soon"
	@echo "make soak    real processes killed, stopped and cut off for a minute each"
	@echo "make bench   writes/s, reads/s, failover; beside etcd where it is installed"
	@echo "make bench-graph   100,000 vertices and 500,000 edges: loading, traversals, look-ups"
	@echo "make clean   remove .venv and caches"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (once; takes a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/kotoba-cluster demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: $(READY)
	@$(BIN)/python -m tests.simulation --surveyors 1 --nodes 3 5 --first $(FIRST) --count $(SEEDS)

sim-ci: $(READY)
	@$(BIN)/python -m tests.simulation --regressions --surveyors 1 --nodes 3 5 --first now --for 60

sim-mutants: $(READY)
	@$(BIN)/python -m tests.simulation.mutants

soak: $(READY)
	KOTOBA_SOAK_SECONDS=60 $(BIN)/python -m pytest -s tests/process

bench: $(READY)
	@$(BIN)/python -m benchmarks

bench-graph: $(READY)
	@$(BIN)/python -m benchmarks.graph

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
