# A fresh clone and Python 3.10 or newer are enough: the first call of any target makes .venv, a later one starts at once.

# The first Python that runs (a version manager may leave commands that don't) and can make a virtual environment.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3.10 python3 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The package alone, which comparing mixers needs, and with everything that its tests need.
READY := $(VENV)/ready
DEVELOP := $(VENV)/ready-to-develop
# Further arguments: make ablation ARGS="--text novel.txt", make test ARGS="-m slow -k gla".
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help ablation test lint docs benchmark

help:
	@echo "make ablation    compare the mixers, results in runs/    (minutes)"
	@echo "make test        the test suite"
	@echo "make lint        ruff and mypy"
	@echo "make docs        write docs/zoo.md, and README's results from benchmarks/results"
	@echo "make benchmark   write benchmarks/results/cpu.json       (minutes, needs a quiet machine)"

ablation: $(READY)
	$(BIN)/mixerzoo ablate $(ARGS)

test: $(DEVELOP)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: $(DEVELOP)
	$(BIN)/ruff check $(ARGS)
	$(BIN)/mypy

docs: $(DEVELOP)
	$(BIN)/python docs/generate.py $(ARGS)

benchmark: $(DEVELOP)
	$(BIN)/python benchmarks/cpu.py --out benchmarks/results/cpu.json $(ARGS)

# `installing` marks an environment that this rule began; found again, it was interrupted, and half an environment is
# thrown away. An environment of the user's own, without either mark, is installed into and never removed.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer with venv was found (Debian, Ubuntu: apt install python3-venv)." \
		"Remedy: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test ! -e $(VENV)/installing || rm -rf $(VENV)
	@test -x $(BIN)/python || { mkdir -p $(VENV) && touch $(VENV)/installing && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --editable .
	@rm -f $(VENV)/installing && touch $@

$(DEVELOP): $(READY)
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@
