# One environment, $(VENV), serves every target: the first one called makes it, the others find it.
#   make demo PYTHON=python3.13 VENV=.venv313     another interpreter, another environment
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
WORKDIR ?= runs/swissroll
PYTEST_ARGS ?=
PYTHON_OLD ?= python3.11
PYTHON_NEW ?= python3.13

# An environment that works keeps its interpreter, unless PYTHON is given.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(if $(shell $(PY) -c '' 2>&1 || echo broken),python3,$(PY))
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
# Set up again when the interpreter, the dependencies or the place of the clone changes.
READY := $(VENV)/.ready-$(VERSION)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: help setup demo test test-fast check format constraints clean

help: ## print this list
	@echo 'usage: make TARGET [PYTHON=python3] [VENV=.venv]'
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

demo: $(READY) ## train on the swiss roll and show where the report is (WORKDIR=runs/swissroll)
	@$(PY) -m experiments.main --config=configs/swissroll.py --workdir=$(WORKDIR)

test: $(READY) ## run all tests (PYTEST_ARGS="-n 2 -k flow")
	@$(PY) -m pytest $(PYTEST_ARGS)

test-fast: $(READY) ## run the tests that are not marked slow
	@$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

check: $(READY) ## lint, format, types and the walls between the packages
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_walls.py

format: $(READY) ## put the code into shape
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

setup: $(READY) ## only make the environment

constraints: ## pin the newest versions anew (PYTHON_OLD=python3.11 PYTHON_NEW=python3.13)
	@mkdir -p build
	@for python in $(PYTHON_OLD) $(PYTHON_NEW); do \
	  echo "Resolving with $$python" && $$python -m venv --clear build/venv && \
	  build/venv/bin/python -m pip install -q -e '.[dev,docs]' && \
	  build/venv/bin/python -m pip freeze --exclude-editable | LC_ALL=C sort > build/pins-$$(basename $$python).txt || exit 1; \
	done
	@cd build && old=pins-$(notdir $(PYTHON_OLD)).txt new=pins-$(notdir $(PYTHON_NEW)).txt && { \
	  LC_ALL=C comm -12 $$old $$new; \
	  LC_ALL=C comm -23 $$old $$new | sed 's/$$/; python_version < "3.12"/'; \
	  LC_ALL=C comm -13 $$old $$new | sed 's/$$/; python_version >= "3.12"/'; } | LC_ALL=C sort -f > pins.txt
	@{ echo '# The exact versions that `make` installs and the tests run with, newest at the time of `make constraints`,'; \
	  echo '# which writes this file. Two lines where JAX and others have left Python 3.11 behind.'; cat build/pins.txt; } > constraints.txt
	@rm -rf build/venv build/pins*.txt

clean: ## remove the environments and the caches; keep runs/
	rm -rf .venv .venv3* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo '$(PYTHON) is not a Python >= 3.11 that runs. Name one: make $(MAKECMDGOALS) PYTHON=python3.13' >&2; exit 1; }
	@echo 'Setting up $(VENV) with Python $(VERSION): a minute or two, once.'
	@test "$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)" = '$(VERSION)' || { \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null && $(PYTHON) -m venv --clear $(VENV); } || { \
	  : 'without ensurepip (Debian leaves it out) the pip of the system can do its work' && \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(PY) install -q pip; } || { \
	  echo 'Python $(VERSION) can make no environment. On Debian or Ubuntu: apt install python$(VERSION)-venv' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-* && touch $@
