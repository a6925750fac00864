# `make serve` and `make test` need only Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROJECTS := -e plugins/csm -e plugins/demo_voice -e plugins/dia -e plugins/orpheus -e plugins/pocket_tts -e plugins/qwen3_tts
PYPROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)
# Extras of the core that `make setup` installs: make bench VENV=.venv-moshi EXTRAS=dev,moshi
EXTRAS ?= dev
# Arguments for a target's command: make serve ARGS="--port 9000 --model DIR"
ARGS ?=

.PHONY: help setup check test test-slow test-reliability test-replicas test-cluster test-oldest serve site bench bench-gpu dist lock dashboard page voice voice-eval clean

help:
	@echo "make serve    install the runtime and serve on port 8000 (ARGS=... for flags)"
	@echo "make test     install the development tools, run the checks and the tests"
	@echo "make setup    install everything for development into $(VENV)"
	@echo "make check    ruff, mypy, import contract, the documentation's links"
	@echo "make site     build the documentation as web pages, into build/site"
	@echo "make test-slow  tests that take minutes (full-size model; about 8 GB of memory)"
	@echo "make test-reliability  the promises of docs/operations.md, with their figures (ten minutes)"
	@echo "make test-replicas  the server's tests, its promises and the conformance kit, with two replicas"
	@echo "make test-cluster  a cluster of Ray on this machine (installs ray, 490 MB; some minutes)"
	@echo "make test-oldest  the tests with the oldest supported dependencies, in $(OLDEST)"
	@echo "make voice    retrain the demo voice (SIZE=cpu or gpu, WORK=folder; takes hours)"
	@echo "make voice-eval  compare the demo voice with its teacher (ARGS=--help)"
	@echo "make bench    compare with the reference implementation (ARGS=--help)"
	@echo "make dist     build wheels and sdists, into dist/"
	@echo "make lock     regenerate deploy/container/lock*.txt"
	@echo "make dashboard  regenerate deploy/grafana/dashboards/"
	@echo "make page     rebuild vox_serve/server/page/static/ from page/ (needs node and npm)"
	@echo "make bench-gpu  correctness and speed on one NVIDIA GPU, ten minutes (ARGS=--help)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vox_serve needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(PYPROJECTS) | $(BIN)/python
	$(BIN)/python -m pip install -e . $(PROJECTS)
	@touch $@

$(VENV)/.dev: $(PYPROJECTS) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[$(EXTRAS)]' $(PROJECTS)
	@touch $@ $(VENV)/.runtime

setup: $(VENV)/.dev

serve: $(VENV)/.runtime
	$(BIN)/python -m vox_serve.launch $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zensical build --strict

site: $(VENV)/.dev
	$(BIN)/zensical build --strict --clean
	@echo "build/site/index.html; to read and edit them live: $(BIN)/zensical serve"

test: check
	$(BIN)/pytest -n auto -m "not slow and not reliability and not cluster" $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow $(ARGS)

# Tests the promises of docs/operations.md, and prints their figures.
test-reliability: $(VENV)/.dev
	$(BIN)/pytest -m reliability tests/reliability $(ARGS)

# Tests that mean a single worker are skipped.  The promises have times, so they run one by one.
test-replicas: export TONE_REPLICAS = 2
test-replicas: $(VENV)/.dev
	$(BIN)/pytest -n auto -m "not slow" tests/server tests/testing tests/test_launch.py tests/test_metrics.py $(ARGS)
	$(BIN)/pytest -m reliability tests/reliability $(ARGS)

$(VENV)/.ray: $(VENV)/.dev
	$(BIN)/python -m pip install -e '.[dev,ray]' $(PROJECTS)
	@touch $@

test-cluster: $(VENV)/.ray
	$(BIN)/pytest -m cluster -s tests/cluster $(ARGS)

# Tests with the lower bounds of the pyproject files, and with moshi, a second reference for Mimi.
OLDEST ?= .venv-oldest
$(OLDEST)/.dev: $(PYPROJECTS)
	$(MAKE) VENV=$(OLDEST) $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pip install uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
	  -e '.[dev,moshi]' $(PROJECTS)
	@touch $@

test-oldest: $(OLDEST)/.dev
	$(OLDEST)/bin/pytest -n auto -m "not slow and not reliability and not cluster" $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.csm $(ARGS)

# If torch is already installed for the machine: make bench-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
bench-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

dist: $(VENV)/.dev
	for project in . plugins/csm plugins/demo_voice plugins/dia plugins/orpheus plugins/pocket_tts plugins/qwen3_tts; do \
	  $(BIN)/python -m build --outdir dist $$project || exit 1; done

lock: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet 'pip>=25'  # older ones do not report License-Expression
	$(BIN)/python -m deploy.container.lock

dashboard: $(VENV)/.dev
	$(BIN)/python -m deploy.grafana.dashboard

page:
	cd page && npm ci && npm run check && npm run build

# Trains the demo voice; for requirements and time, see plugins/demo_voice/training/README.md.
SIZE ?= cpu
# Processes that share the codec's work, one per core.
PROCESSES ?= $(if $(filter gpu,$(SIZE)),1,2)
TRAIN := $(BIN)/python -m plugins.demo_voice.training
RUN = --size $(SIZE) $(if $(WORK),--work $(WORK))
$(VENV)/.voice: $(VENV)/.dev
	$(BIN)/python -m pip install -e '.[dev,voice]' $(PROJECTS)
	@touch $@

# glibc keeps freed tensors: page faults would take up to a third of the time.
voice: export MALLOC_MMAP_MAX_ = 0
voice: export MALLOC_TRIM_THRESHOLD_ = 8000000000
voice: $(VENV)/.voice
	$(TRAIN).data $(RUN)
	$(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m \
	  plugins.demo_voice.training.codec $(RUN) $(ARGS)
	$(TRAIN).lm $(RUN) $(ARGS)
	$(TRAIN).export $(RUN)

voice-eval: $(VENV)/.voice
	$(TRAIN).evaluate $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
