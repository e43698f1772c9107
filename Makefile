# `make demo` and `make test` are all that a new checkout needs: each sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin

# The tests start Python hundreds of times: what it imports is compiled once, even where the environment forbids that.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo schemas test coverage test-long soak test-lowest test-dataflow test-integration fuzz lint clean

demo: $(VENV)/installed
	$(BIN)/imgindex demo $(DEMO)

# The JSON Schemas that editors and other programs read, made of the code.
schemas: $(VENV)/installed
	for of in config manifest evaluation; do $(BIN)/python -m imgindex.schemas $$of > pipeline/schemas/$$of.schema.json; done

# Workers take whole files of tests, so that what a file sets up is set up once. A test that crashes its worker fails by
# its name, and no new worker is started: with --dist=loadfile, a run that starts one may never end.
WORKERS ?= 2
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadfile --max-worker-restart=0

# Ends a worker that blocks in native code, where no signal is heeded, long after the limit of pyproject.toml.
HANGS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

test: $(VENV)/installed-test
	@echo 'The tests take some 8 minutes on two cores. Skipped: those marked long, integration and dataflow (make test-long, test-integration, test-dataflow).'
	$(PYTEST) $(HANGS)

# The same tests, and which lines they run: it takes Python half as long again.
coverage: $(VENV)/installed-test
	$(PYTEST) $(HANGS) --cov=imgindex --cov-report=term

# What takes minutes: builds that are killed, writes that fail, readers under ten publishes. KILLS says how many.
KILLS ?= 30
test-long: $(VENV)/installed-test
	IMGINDEX_KILLS=$(KILLS) $(PYTEST) -m long

# Refreshes in a row, with kills, bad files and damage between them: about a quarter of an hour.
ROUNDS ?= 50
soak: $(VENV)/installed-test
	IMGINDEX_SOAK_ROUNDS=$(ROUNDS) $(BIN)/pytest -m long -s tests/builds/test_soak.py

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

# The decoder on inputs that a coverage-guided fuzzer makes up, for FUZZ_SECONDS or FUZZ_RUNS inputs; -1: any number.
# It goes on with the corpus of the last time, and keeps what it finds, both in build/fuzz.
FUZZ_SECONDS ?= 300
FUZZ_RUNS ?= -1
fuzz: $(VENV)/installed
	$(BIN)/pip install -qq --editable '.[fuzz]'
	$(BIN)/python fuzz/seeds.py build/fuzz/seeds
	mkdir -p build/fuzz/corpus
	GLIBC_TUNABLES=glibc.malloc.tcache_count=0 $(BIN)/python fuzz/decode.py -max_total_time=$(FUZZ_SECONDS) -runs=$(FUZZ_RUNS) build/fuzz/corpus build/fuzz/seeds

# Builds on Prism and Flink, whose parts stay in ~/.cache, and on servers of S3 and of Cloud Storage, the latter where
# Go can build it; what is missing is skipped and said. Exports, read by other tools in environments in ~/.cache. FEATURES says how large the index half's is, PAIRS how often two
# builds start together, PUSH_KILLS how many pushes into each database are killed.
FEATURES ?= 10000
PAIRS ?= 3
PUSH_KILLS ?= 3
GCS_SERVER := github.com/fsouza/fake-gcs-server@v1.56.1
test-integration: $(VENV)/installed-test
	$(BIN)/pip install -qq --editable '.[integration]'
	GOBIN=$(abspath $(BIN)) go install $(GCS_SERVER) || echo 'no fake-gcs-server: its tests are skipped'
	IMGINDEX_FEATURES=$(FEATURES) IMGINDEX_PAIRS=$(PAIRS) IMGINDEX_PUSH_KILLS=$(PUSH_KILLS) $(PYTEST) -m integration

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint dataflow/Dockerfile
	rm -rf build/typed
	$(BIN)/python setup.py --quiet build_py --build-lib build/typed
	$(BIN)/mypy
	PYTHONPATH=build/typed $(BIN)/lint-imports --no-cache

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
