# `make figures` installs SeerBench, runs the graph on this machine's device and draws every table and figure.
# `make test` runs the whole test suite, `make help` lists the other targets. All work from a fresh clone and need
# only Python and g++. Paths and names reach the shell through the environment, so they may contain any character.

PRESET ?= cpu
CORES ?= all
PYTHON ?= python3
VENV ?= .venv
export PRESET CORES PYTHON VENV BENCH
# A machine with an NVIDIA GPU gets the newest torch; any other gets the version in constraints-cpu.txt. That file
# says how pip finds the small CPU build.
TORCH := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)
# The programs of the environment come first, for the rules' commands too.
ENTER := PATH="$$(cd -- "$$VENV/bin" && pwd):$$PATH"; export PATH

.PHONY: figures tables report notebooks test test-matrix test-slurm release-check site lint bench doctor install help
figures tables report notebooks: install
	@hint=""; command -v seerbench > /dev/null || hint="to call seerbench yourself: source $$VENV/bin/activate"; \
	$(ENTER); snakemake --cores "$$CORES" --config preset="$$PRESET" -- $@ || exit; \
	[ -z "$$hint" ] || echo "$$hint"

test: lint
	$(ENTER); python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(ENTER); ruff check .
	$(ENTER); ruff format --check .
	$(ENTER); lint-imports
	$(ENTER); mypy
	$(ENTER); snakefmt --check Snakefile workflow/rules
	$(ENTER); snakemake --lint

# Runs the suite on Python 3.12 with the lowest versions that pyproject.toml allows, and on 3.13 with the newest.
test-matrix:
	"$$PYTHON" -m venv .tox/tox
	.tox/tox/bin/python -m pip install --quiet --disable-pip-version-check "tox>=4.21" "tox-uv>=1.20"
	.tox/tox/bin/tox run

# Runs the smoke preset with --executor slurm on its own Slurm daemons (apt-get install slurm-wlm munge).
test-slurm: install
	$(ENTER); python -m pytest tests/workflow/slurm/on_slurm.py

# Builds sdist and wheel in dist/, and uses the wheel in a new environment outside the repository.
PYTHONS ?= $(PYTHON)
export PYTHONS
release-check:
	"$$PYTHON" tools/release_check.py $$PYTHONS

# Makes the documentation a site in build/site, which needs no network: open build/site/index.html.
site: install
	$(ENTER); python -m pip install --quiet --disable-pip-version-check -e '.[docs]' $(TORCH) && python tools/make_site.py

# Benchmarks the GPU if there is one, else the CPU. To compare before and after a change, run
# make bench BENCH=--benchmark-autosave, make the change, then run
# make bench BENCH="--benchmark-compare --benchmark-compare-fail=median:10%"
bench: install
	$(ENTER); python -m pytest benchmarks --benchmark-enable --benchmark-only $$BENCH

doctor: install
	@$(ENTER); seerbench doctor -- "$$PRESET"

# pip would compile the packages' bytecode on one core, two fifths of the time. A package may hold templates that do
# not compile.
#
# The stamp holds the folder of the checkout. The installation is editable: a second checkout that used the same
# environment would run the first one's code, or re-point the installation without a word.
install:
	@stamp="$$VENV/bin/.installed"; \
	if [ -s "$$stamp" ] && [ "$$(cat -- "$$stamp")" != "$$(pwd -P)" ]; then \
		echo "VENV=$$VENV was installed for the checkout $$(cat -- "$$stamp"), and this is $$(pwd -P);" \
			"choose another VENV, or remove that one" >&2; exit 1; \
	fi; \
	if [ "$$stamp" -nt pyproject.toml ] && [ "$$stamp" -nt constraints-cpu.txt ]; then exit 0; fi; \
	echo "installing SeerBench and its packages into $$VENV: 2.8 GB, in some minutes"; \
	if [ -t 1 ]; then quiet=""; else quiet=--quiet; fi; \
	"$$PYTHON" -m venv -- "$$VENV" && \
	"$$VENV/bin/python" -m pip install $$quiet --disable-pip-version-check --no-compile -e '.[test]' \
		$(TORCH) && \
	{ "$$VENV/bin/python" -m compileall -qq -j 0 "$$VENV/lib" || true; } && \
	pwd -P > "$$stamp"

help:
	@echo "make figures     measure, and draw every table and figure (PRESET=cpu, gpu, speed, paper or my.yaml)"
	@echo "make tables      the tables alone; also: make report, make notebooks"
	@echo "make doctor      what this machine can measure, and what is missing"
	@echo "make install     install into VENV (.venv) and do nothing else"
	@echo "make test        linters and all tests; make lint: the linters alone; make test-slurm: the Slurm profile"
	@echo "make test-matrix the tests with the lowest and with the newest versions of Python and packages"
	@echo "make release-check  build the wheel and use it in a new environment (PYTHONS='python3.11 python3.13')"
	@echo "make site        the documentation as a site that needs no network, in build/site"
	@echo "make bench       time the kernels with pytest-benchmark (BENCH=options)"
	@echo "Variables: PRESET, CORES (all), VENV (.venv), PYTHON (python3)."
