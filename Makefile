# With Python and make alone, `make demo` and `make test` do all set-up themselves, once, in .venv.
#
#   TORCH   what to install as PyTorch: any requirement of 2.4 or newer, or the path of a wheel
#   PYTHON  the interpreter that .venv is made with (3.10 or newer)
#
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) apply.
TORCH ?= torch==2.13.0
PYTHON ?= $(if $(shell python3.11 -c 'print(1)' 2>/dev/null),python3.11,python3)

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
TORCH_ID := $(shell printf '%s' '$(TORCH)' | cksum | tr -d ' ')
STAMP := $(VENV)/.setup-$(TORCH_ID)

DOCS_STAMP := $(VENV)/.docs

.PHONY: help setup demo study test lint docs clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make setup      make $(VENV) with everything installed (once; TORCH=... picks the PyTorch)'
	@echo 'make demo       train, test and show the demo (tools/run_demo.py)'
	@echo 'make study      train, test and report the study (tools/study.py); goes on where it was'
	@echo 'make test       lint, then run the tests'
	@echo 'make lint       ruff check, ruff format --check, mypy'
	@echo 'make docs       build the documentation into docs/_build/html'
	@echo 'make clean      remove what the demo and the study wrote'
	@echo 'make distclean  remove also $(VENV), caches and build results'

setup: $(STAMP)

# setuptools and wheel come first because mmcv-lite and this package build without isolation; the
# constraints hold setuptools where it is, which installing PyTorch would otherwise upgrade.
$(STAMP): pyproject.toml setup.py $(CONSTRAINTS) Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
	  f"make setup: $(PYTHON) is Python {v[0]}.{v[1]}; 3.10 or newer is needed (PYTHON=... picks it)")'
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.setup-*
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet setuptools wheel
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet --no-build-isolation \
	  '$(TORCH)' -e '.[recognition,dev]'
	@touch $@

demo: setup
	@$(BIN)/python tools/run_demo.py

study: setup
	@$(BIN)/python tools/study.py --out work_dirs/study
	@$(BIN)/python tools/study.py --report work_dirs/study --docs docs

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

$(DOCS_STAMP): $(STAMP)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf work_dirs/demo work_dirs/study data/moving_shapes data/study_small

distclean: clean
	rm -rf $(VENV) docs/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
