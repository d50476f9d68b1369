# All targets share one environment, $(VENV), which the first target creates.
# To use another interpreter next to it: make test PYTHON=python3.13 VENV=.venv313
.DEFAULT_GOAL := help

VENV ?= .venv
PY := $(VENV)/bin/python
WORKDIR ?= runs/swissroll
PICTURES := $(dir $(WORKDIR))
PYTEST_ARGS ?=
# One worker per core, but at most 4. For a debugger, set PYTEST_ARGS='-n 0'. With "worksteal", the
# tests of a module mostly run in one worker, which prepares and compiles once for all of them.
PYTEST := -m pytest -n auto --maxprocesses=4 --dist=worksteal
PYTHON_OLD ?= python3.11
PYTHON_NEW ?= python3.13

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Debian packages ensurepip separately; without it, the system's pip is used, see $(READY).
CAN_HOST := import sys, venv; from importlib.util import find_spec; \
  sys.exit(sys.version_info < (3, 11) or not (find_spec("ensurepip") or find_spec("pip")))
PRINT_VERSION := import sys; print("%d.%d" % sys.version_info[:2])
PRINT_LICENCES := from importlib.metadata import distributions; \
  print(*sorted("%-30s %-16s %s" % (d.name, d.version, d.metadata["License-Expression"] \
  or (d.metadata["License"] or "see its files").splitlines()[0][:60]) for d in distributions()), sep="\n")

# A working environment keeps its interpreter unless PYTHON is set. A new one uses the newest Python
# that runs, because a name on the PATH may be a shim without an interpreter.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(if $(shell $(PY) -c '$(NEW_ENOUGH)' 2>&1 || echo broken),$(shell \
  for python in python3.14 python3.13 python3.12 python3.11; do \
  $$python -c '$(CAN_HOST)' >/dev/null 2>&1 && echo $$python && exit; done; echo python3),$(PY))
endif
VERSION := $(shell $(PYTHON) -c '$(PRINT_VERSION)' 2>/dev/null)

# Set up again when the dependencies, the interpreter or the path of the clone change.
READY := $(VENV)/.ready-$(VERSION)-$(shell pwd | cksum | cut -d' ' -f1)

.PHONY: help setup demo test test-all coverage check docs licences format constraints package clean

help: ## print this list
	@echo 'usage: make TARGET [PYTHON=python3.13] [VENV=.venv]'
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | \
	  while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

demo: $(READY) ## draw images, train on the swiss roll and show the report [WORKDIR=runs/swissroll]
	@$(PY) -m examples.pretrained_samples --sampler=mnist --out='$(PICTURES)mnist.png'
	@$(PY) -m examples.pretrained_samples --sampler=cifar10 --out='$(PICTURES)cifar10.png'
	@$(PY) -m experiments.main --config=configs/swissroll.py --workdir='$(WORKDIR)'
	@echo 'pictures: $(abspath $(PICTURES)mnist.png) $(abspath $(PICTURES)cifar10.png)'

test: $(READY) ## run the tests that are not marked slow [PYTEST_ARGS="-k flow -x"]
	@echo 'About 1,000 tests: 4 minutes on two idle cores, and less once their programs are compiled.'
	@$(PY) $(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-all: $(READY) ## run all tests
	@echo 'Also the slow tests: 12 minutes on two idle cores.'
	@$(PY) $(PYTEST) $(PYTEST_ARGS)

coverage: $(READY) ## measure the share of the library's lines and branches that its tests run
	@$(PY) -m coverage run $(PYTEST) -q tests/core tests/networks
	@$(PY) -m coverage combine -q && $(PY) -m coverage report --include='fdrl_jax/*' --fail-under=95

check: $(READY) ## check lint, format, types, import rules and dependencies
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pip check

docs: $(READY) ## build the documentation in build/docs; every warning is an error
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(PY) -m sphinx -q -W --keep-going -d build/doctrees docs build/docs
	@! grep -rE --include='*.html' '<(script|img|link rel="stylesheet")[^>]*(src|href)="(https?:)?//' build/docs \
	  || { echo 'These pages load files from the network, but must be readable offline.' >&2; exit 1; }
	@echo 'build/docs/index.html'

licences: $(READY) ## list the packages of the environment with their licences
	@$(PY) -c '$(PRINT_LICENCES)'

format: $(READY) ## fix what the linter and the formatter can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

setup: $(READY) ## create only the environment

constraints: ## pin the newest versions [PYTHON_OLD=python3.11 PYTHON_NEW=python3.13]
	@rm -rf build/pins && mkdir -p build/pins
	@set -e; for python in $(PYTHON_OLD) $(PYTHON_NEW); do \
	  echo "Resolving with $$python"; \
	  $$python -m venv --clear build/pins/venv; \
	  build/pins/venv/bin/python -m pip install -q -e '.[dev,docs]'; \
	  build/pins/venv/bin/python -m pip freeze --exclude-editable > build/pins/freeze; \
	  LC_ALL=C sort build/pins/freeze > build/pins/$$(basename $$python); \
	done
	@cd build/pins; export LC_ALL=C; set -- $(notdir $(PYTHON_OLD) $(PYTHON_NEW)); { \
	  echo '# Written by `make constraints`: the exact versions that `make` installs and the tests run with.'; \
	  echo '# A package has two lines if its newest version does not support Python 3.11.'; \
	  { comm -12 $$1 $$2; \
	    comm -23 $$1 $$2 | sed 's/$$/; python_version < "3.12"/'; \
	    comm -13 $$1 $$2 | sed 's/$$/; python_version >= "3.12"/'; } | sort -f; } > ../../constraints.txt
	@rm -rf build/pins

package: $(READY) ## build wheel and sdist into dist/, and import the wheel in an empty environment
	@rm -rf dist build/package && mkdir -p build && $(PY) -m build --outdir dist > build/package.log \
	  || { cat build/package.log; exit 1; }
	@$(PY) -m venv build/package && build/package/bin/python -m pip install -q \
	  --disable-pip-version-check -c constraints.txt dist/*.whl
	@cd build && package/bin/python -c 'import fdrl_jax; print("fdrl_jax", fdrl_jax.__version__)'

clean: ## remove $(VENV), caches and build files, but not runs/
	rm -rf '$(VENV)' .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov build dist *.egg-info

# Debian ships venv without ensurepip; the system's pip then installs pip into the environment.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is not a working Python >= 3.11." \
	  "Choose another one: make $(MAKECMDGOALS) PYTHON=python3.13" >&2; exit 1; }
	@echo 'Setting up $(VENV) with Python $(VERSION); this takes a minute or two, only once.'
	@test "$$($(PY) -c '$(PRINT_VERSION)' 2>&1)" = '$(VERSION)' \
	  || { $(PYTHON) -c 'import ensurepip' 2>/dev/null && $(PYTHON) -m venv --clear '$(VENV)'; } \
	  || { $(PYTHON) -m venv --clear --without-pip '$(VENV)' && $(PYTHON) -m pip --python $(PY) install -q pip; } \
	  || { echo "Python $(VERSION) cannot create an environment. On Debian and Ubuntu: apt install python$(VERSION)-venv" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  || { echo "The installation failed, see above. It works with Python 3.11 to 3.14; this is $(VERSION)." >&2; exit 1; }
	@rm -f '$(VENV)'/.ready-* && touch '$@'
