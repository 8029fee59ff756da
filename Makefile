# With Python and make alone, `make demo` and `make test` do all set-up themselves, once, in .venv.
#
#   TORCH   what to install as PyTorch: any requirement of 2.8 or newer, or the path of a wheel
#   PYTHON  the interpreter that .venv is made with (3.10 or newer)
#   WHEELS  where `make setup-detection` looks for, and keeps, the mmcv wheel that it compiles; by
#           default in the user's cache folder, so that other clones find it
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

# Detection needs mmcv with its operators, which replaces the mmcv-lite of .venv.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vared2_mmaction/wheels
DETECTION := .venv-detection
DETECTION_BIN := $(DETECTION)/bin
DETECTION_STAMP := $(DETECTION)/.setup-$(TORCH_ID)
MMCV := $(shell sed -n 's/^mmcv==//p' $(CONSTRAINTS))

.PHONY: help setup setup-detection has-detection demo study detection \
  test test-detection lint docs clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make setup      make $(VENV) with everything installed (once; TORCH=... picks the PyTorch)'
	@echo 'make demo       train, test and show the demo (tools/run_demo.py)'
	@echo 'make study      train, test and report the study (tools/study.py); goes on where it was'
	@echo 'make test       lint, then run the tests'
	@echo 'make lint       ruff check, ruff format --check, mypy'
	@echo 'make setup-detection  make $(DETECTION) for action detection (about 20 minutes, once)'
	@echo 'make detection        train and test detection there (tools/run_detection.py)'
	@echo 'make test-detection   run the tests of detection there'
	@echo 'make docs       build the documentation into docs/_build/html'
	@echo 'make clean      remove what the demo, the study and detection wrote'
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
	@# MMEngine's yapf keeps its grammar in a file, which processes that start together read half.
	@$(BIN)/python -c 'import yapf'
	@touch $@

setup-detection: $(DETECTION_STAMP)

# A wheel fits one PyTorch and one Python only, hence the folder's name; pip's own cache of wheels
# does not know about the former.
$(DETECTION_STAMP): pyproject.toml setup.py $(CONSTRAINTS) Makefile
	@$(DETECTION_BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(DETECTION)
	@rm -f $(DETECTION)/.setup-*
	PIP_CONSTRAINT=$(CONSTRAINTS) $(DETECTION_BIN)/python -m pip install --quiet setuptools wheel ninja \
	  numpy '$(TORCH)'
	@set -e; export PIP_CONSTRAINT=$(CONSTRAINTS) MMCV_WITH_OPS=1; \
	export PATH="$(abspath $(DETECTION_BIN)):$$PATH"; \
	folder=$(WHEELS)/$$(python -c 'import torch; print("torch-" + torch.__version__)'); \
	wheel=mmcv-$(MMCV)-$$(python -c 'import sys; print("cp%d%d" % sys.version_info[:2])'); \
	if ! ls "$$folder/$$wheel"-*.whl 2>/dev/null; then \
	  echo "Compiling the operators of mmcv $(MMCV): about 20 minutes on two cores, once."; \
	  echo "The wheel is kept in $$folder (WHEELS=... names another folder)."; \
	  python -m pip wheel --quiet --no-deps --no-cache-dir --no-build-isolation --no-binary mmcv \
	    --wheel-dir "$$folder" mmcv==$(MMCV); \
	fi; \
	python -m pip install --quiet --no-build-isolation "$$folder/$$wheel"-*.whl -e '.[detection,dev]'
	@touch $@

# Succeeds if `make setup-detection` would not have to compile.
has-detection: setup
	@test -e $(DETECTION_STAMP) || ls $(WHEELS)/torch-$$($(BIN)/python -c 'import sys, torch; print( \
	  "%s/mmcv-$(MMCV)-cp%d%d" % (torch.__version__, *sys.version_info[:2]))')-*.whl >/dev/null 2>&1

demo: setup
	@$(BIN)/python tools/run_demo.py

study: setup
	@$(BIN)/python tools/study.py --out work_dirs/study
	@$(BIN)/python tools/study.py --report work_dirs/study

detection: setup-detection
	@$(DETECTION_BIN)/python tools/run_detection.py

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A process a core; the tests of a file share what they train.
test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

test-detection: setup-detection
	$(DETECTION_BIN)/python -m pytest tests/detection

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html

$(DOCS_STAMP): $(STAMP)
	PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/python -m pip install --quiet --no-build-isolation -e '.[docs]'
	@touch $@

clean:
	rm -rf work_dirs/demo work_dirs/study work_dirs/detection
	rm -rf data/moving_shapes data/study_small data/moving_boxes

distclean: clean
	rm -rf $(VENV) $(DETECTION) docs/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
