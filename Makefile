# `make figures` installs SeerBench, runs the graph on this machine's device and draws every table and figure.
# `make test` runs the whole test suite. Both work from a fresh clone and need only Python and g++.

PRESET ?= cpu
CORES ?= all
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A machine with an NVIDIA GPU gets the newest torch; any other gets the version in constraints-cpu.txt. That file
# says how pip finds the small CPU build.
TORCH := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)
# This lock is released when the run is killed; Snakemake's own lock would remain.
LOCK := flock --nonblock --conflict-exit-code 75 .make.lock
SNAKEMAKE := PATH=$(CURDIR)/$(BIN):$$PATH $(LOCK) $(BIN)/snakemake --nolock --quiet rules --cores $(CORES) --config preset=$(PRESET)

.PHONY: figures tables report notebooks test test-slurm lint bench doctor
figures tables report notebooks: $(BIN)/.installed
	@$(SNAKEMAKE) -- $@; status=$$?; \
	if [ $$status = 75 ]; then echo "another make is running here; wait for it, or end it"; fi; exit $$status

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/snakefmt --check Snakefile workflow/rules
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/snakemake --lint

# Runs the smoke preset with --executor slurm on its own Slurm daemons (apt-get install slurm-wlm munge).
test-slurm: $(BIN)/.installed
	$(BIN)/python -m pytest tests/workflow/slurm/on_slurm.py

# Benchmarks the GPU if there is one, else the CPU. To compare before and after a change, run
# make bench BENCH=--benchmark-autosave, make the change, then run
# make bench BENCH="--benchmark-compare --benchmark-compare-fail=median:10%"
bench: $(BIN)/.installed
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only $(BENCH)

doctor: $(BIN)/.installed
	$(BIN)/seerbench doctor $(PRESET)

$(BIN)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]' $(TORCH)
	touch $@
