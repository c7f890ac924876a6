# make demo    train a tiny model through all three stages, then let it answer spoken questions it never heard
# make test    all tests, the optional parts included
# make lint    ruff and mypy
# make docs    build the documentation into site/; a broken link fails

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
S2S := $(BIN)/lightning-s2s

.PHONY: setup demo test lint docs clean

# --- set-up -------------------------------------------------------------------------------------------------------
# A stamp for what is installed: it is renewed when pyproject.toml or the constraints change.

# PIP_ARGS: for example --extra-index-url with the CPU wheels of torch, where pip would else take the CUDA build
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

setup: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[codecs,ssl,construction,ray,piper,serve,evaluation,dev]'
	$(BIN)/python tools/cpu_torchaudio.py
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	@touch $@

# --- the demo -----------------------------------------------------------------------------------------------------
# Ctrl-C stops a stage and saves it; `make demo` again goes on from there.

RUNS := runs/tiny

demo: setup
	$(S2S) fit --config experiments/tiny/1_understanding.yaml --resume
	$(S2S) fit --config experiments/tiny/2_generation.yaml --resume
	$(S2S) fit --config experiments/tiny/3_tuning.yaml --resume
	$(S2S) evaluate answers --config experiments/tiny/answers.yaml
	@echo "curves, latency and sound in TensorBoard: $(BIN)/tensorboard --logdir $(RUNS)"

# --- checks -------------------------------------------------------------------------------------------------------

# A process for each core, four at most; the tests of one file stay together, since some build on each other.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build *.egg-info
