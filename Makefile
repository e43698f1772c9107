# `make demo` and `make test` are all that a new checkout needs: each sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin

.PHONY: demo test test-long test-lowest test-dataflow test-integration lint clean

demo: $(VENV)/installed
	$(BIN)/imgindex demo $(DEMO)

test: $(VENV)/installed-test
	$(BIN)/pytest --cov=imgindex --cov-report=term

# What takes minutes: builds that are killed, writes that fail, readers under ten publishes. KILLS says how many.
KILLS ?= 30
test-long: $(VENV)/installed-test
	IMGINDEX_KILLS=$(KILLS) $(BIN)/pytest -m long

# The same tests with the oldest libraries that pyproject.toml allows.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet --upgrade pip setuptools
	$(VENV)-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	$(VENV)-lowest/bin/pytest

# The job for Dataflow, made without it, by the Beam of the image.
BEAM := $(shell sed -n 's/^ARG BEAM_VERSION=//p' dataflow/Dockerfile)
test-dataflow: $(VENV)/installed-test
	$(BIN)/pip install -qq --editable '.[dataflow]' 'apache-beam==$(BEAM)'
	$(BIN)/pytest -m dataflow

# Builds on real engines. FEATURES says how large the index half's is; what is downloaded stays in ~/.cache.
FEATURES ?= 10000
test-integration: $(VENV)/installed-test
	IMGINDEX_FEATURES=$(FEATURES) $(BIN)/pytest -m integration

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint dataflow/Dockerfile
	rm -rf build/typed
	$(BIN)/python setup.py --quiet build_py --build-lib build/typed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-lowest build $(DEMO)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools

$(VENV)/installed: $(VENV)/bin/python setup.py pyproject.toml
	$(BIN)/pip install -qq --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -qq --editable '.[test]'
	touch $@
