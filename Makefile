# make demo       train a tiny model through all three stages, then let it answer spoken questions it never heard
# make test       all tests but the slow ones, the optional parts included
# make test-slow  the slow tests: more of each kind, real models where a variable names their folder
# make lint       ruff and mypy
# make docs       build the documentation into site/; a broken link fails
# make lock       write requirements/*.txt: the hashes of what is installed

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
S2S := $(BIN)/lightning-s2s

.PHONY: setup lock demo test test-slow lint docs clean

# --- set-up -------------------------------------------------------------------------------------------------------
# Stamps for what is installed: they are renewed when pyproject.toml, the constraints or the locked files change.
#
# Every package must have a hash that requirements/*.txt lists; `make lock` writes these files. torch alone, of which
# each machine has another build, and the CUDA libraries that a build asks for, come without: from the default index, or
# from TORCH_INDEX, which is asked when all else is there, so that no other package can come from it.

TORCH_INDEX ?=
PIP_ARGS ?=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS)
LOCKED := $(PIP) --require-hashes --no-deps -r

setup: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt requirements/base.txt | $(VENV)/bin/python
	$(LOCKED) requirements/base.txt
	$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

$(VENV)/.installed-dev: requirements/dev.txt $(VENV)/.installed
	$(LOCKED) requirements/dev.txt
	$(BIN)/python tools/cpu_torchaudio.py
	$(BIN)/pip check
	@touch $@

$(VENV)/.installed-docs: requirements/docs.txt $(VENV)/.installed
	$(LOCKED) requirements/docs.txt
	$(BIN)/pip check
	@touch $@

# Hashes of all files of each package, for every platform and Python, at the versions of constraints.txt. torch is left
# out, and so is what its CUDA build alone needs (pyproject.toml, [tool.uv]).
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-package torch \
	--custom-compile-command 'make lock' -c constraints.txt pyproject.toml
DEV_EXTRAS := codecs ssl construction ray piper serve evaluation dev

lock: | $(VENV)/bin/python
	$(PIP) uv==0.13.9
	$(LOCK) -o requirements/base.txt
	$(LOCK) $(DEV_EXTRAS:%=--extra %) -o requirements/dev.txt
	$(LOCK) --python-version 3.11.5 --extra docs -o requirements/docs.txt  # one of them asks for it

# --- the demo -----------------------------------------------------------------------------------------------------
# Ctrl-C stops a stage and saves it; `make demo` again goes on from there.

RUNS := runs/tiny

demo: setup
	$(S2S) train experiments/tiny/recipe.yaml
	@echo "curves, latency and sound in TensorBoard: $(BIN)/tensorboard --logdir $(RUNS)"

# --- checks -------------------------------------------------------------------------------------------------------

# A process for each core, four at most; the tests of one file stay together, since some build on each other.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build *.egg-info
