# Every target makes what it needs: a virtual environment in .venv, wheels, and for `test` and `bench`
# the servers of the live tests in .tools. Nothing needs root; nothing outside this folder is changed.
#
#   make demo [SECONDS=n]   the whole road on this machine, with a simulated plant
#   make test [ARGS=...]    lint, types and all tests; ARGS goes to pytest
#   make bench [ARGS=...]   measure; ARGS goes to `python -m tests.bench`
#   make chaos [MINUTES=n]  two replicas under random faults: nothing may be lost untold
#   make takeover           how long it takes until the other replica acts, 20 runs each
#   make sim [SEEDS=n]      random schedules of the whole road in simulated time, and every rule's removal
#   make soak [MINUTES=n]   faults and changes without end; nothing may be lost untold, nothing may grow
#   make lint               ruff and mypy alone
#   make bundle             dist/edgemirror-*.tar.gz: installs, upgrades and rolls back on a box without internet
#   make try-bundle         make that and install, run, upgrade and uninstall it in a folder, without network
#   make clean              remove all that was made here, .tools and .venv included

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test bench soak chaos takeover sim lint tools bundle try-bundle clean

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/stamp-demo
	$(PY) -m gateway demo $(if $(filter command line,$(origin SECONDS)),--seconds $(SECONDS))

test: lint tools
	$(PY) -m pytest $(ARGS)

bench: tools
	$(PY) -m tests.bench $(ARGS)

MINUTES ?= 5
SEEDS ?= 1000
chaos: tools
	$(PY) -m tests.tools etcd
	$(PY) -m tests.chaos.pairs --minutes $(MINUTES)

takeover: tools
	$(PY) -m tests.tools etcd
	$(PY) -m tests.chaos.takeover

sim: tools
	$(PY) -m tests.sim --seeds $(SEEDS)

soak: tools
	$(PY) -m tests.live.soak --minutes $(MINUTES)

lint: .venv/stamp-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

tools: .venv/stamp-test
	$(PY) -m tests.tools

# The versions that are in .venv: after `make test` those that were tested.
bundle: | .venv/bin/python
	@$(PY) deploy/bundle.py

try-bundle: .venv/stamp-test
	@$(PY) -m tests.deploy.try_bundle

clean:
	rm -rf .venv .tools .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Debian Python without the venv package has no ensurepip: then the machine's own pip fills the venv.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { \
		rm -rf .venv && $(PYTHON) -m venv --without-pip .venv && \
		$(PYTHON) -m pip --quiet --python .venv/bin/python install pip; } || \
		{ rm -rf .venv; echo "pip is needed: install python3-pip or python3-venv" >&2; exit 1; }

.venv/stamp-demo: pyproject.toml | .venv/bin/python
	@echo "installing the wheels of edgemirror and its demo into .venv"
	@$(PIP) install --editable '.[demo]'
	@touch $@

.venv/stamp-test: pyproject.toml | .venv/bin/python
	@echo "installing the wheels of edgemirror and its tests into .venv"
	@$(PIP) install --editable '.[test]'
	@touch $@ .venv/stamp-demo
