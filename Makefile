# The house's commands. `make demo` and `make test` are all a newcomer needs; both make their own environment.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV ?= .venv
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gpuvigil
BUF := $(CACHE)/buf/node_modules/.bin/buf
BUF_VERSION := 1.75.0
PY := $(VENV)/bin/python
# tests run side by side (tests/parallel.py): most of a run is waiting for servers. 0: in one process
WORKERS ?= 3
ARGS ?=

.PHONY: demo demo-train test test-train test-gpu check lint types imports protos generate bench ci soak promises clean

demo: $(VENV)/.demo  ## A simulated fleet with faults, watched by the real agent and collector
	@$(VENV)/bin/gpuvigil demo $(ARGS)

demo-train: $(VENV)/.train  ## As demo, with a real training job that is slowed, stopped, killed and resumed
	@$(VENV)/bin/gpuvigil demo --training $(ARGS)

test: $(VENV)/.dev  ## Every suite that this machine can run; names those that it cannot
	@$(PY) -m pytest -n $(WORKERS) $(ARGS)

test-train: $(VENV)/.train  ## As test, with PyTorch: the hook in real training loops
	@$(PY) -m pytest -n $(WORKERS) $(ARGS)

test-gpu: $(VENV)/.dev  ## The same contracts on a real NVIDIA driver
	@$(PY) -m pytest -m gpu $(ARGS)

check: lint types imports protos test

ci: lint types imports protos $(VENV)/.train
	@GPUVIGIL_REQUIRE=all $(MAKE) --no-print-directory test

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/vermin --no-tips --violations -t=3.9- agent/gpuvigil

types: $(VENV)/.dev
	$(VENV)/bin/mypy

imports: $(VENV)/.dev
	PYTHONPATH=agent:collector:detectors:protos $(VENV)/bin/lint-imports

protos: $(VENV)/.dev $(BUF)  ## The wire: lint, no break against the released image, generated code in sync
	cd protos && $(BUF) lint && $(BUF) breaking --against released.binpb
	$(PY) protos/generate.py --check

generate: $(VENV)/.dev
	$(PY) protos/generate.py

bench: $(VENV)/.bench  ## Prints the figures of docs/benchmarks.md; ARGS=--quick for a short run
	@failed=; for b in tests/bench/bench_*.py; do echo "== $$b"; $(PY) $$b $(ARGS) || failed="$$failed $$b"; done; \
	test -z "$$failed" || { echo "ended with a figure not held, or with an error:$$failed" >&2; exit 1; }

soak: $(VENV)/.train  ## Hours: 59 faulty torchrun jobs a kind, the safety kernel in 100,000 fleets (ARGS="--workers 8")
	@$(PY) tests/sim/run.py --seeds 100000 $(ARGS)
	@$(PY) tests/bench/bench_training_faults.py --trials 59

promises: $(VENV)/.train  ## Runs the tests that are named after a promise; writes docs/promises.md from what they said
	@mkdir -p build
	@$(PY) -m pytest $$($(PY) tests/promises.py tests) --junitxml=build/promises.xml $(ARGS) || true
	@$(PY) tests/promises.py write build/promises.xml

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "gpuvigil needs Python 3.11 or newer on PATH; none was found" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: \
	apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing gpuvigil into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[agent,collector]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing gpuvigil and its test tools into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.train: pyproject.toml | $(VENV)/.dev
	@echo "installing PyTorch for the hook's tests into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,train]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@echo "installing PyTorch and the exporters that are measured beside into $(VENV) ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,train,bench]'
	@touch $@ $(VENV)/.train

$(BUF):
	@command -v npm >/dev/null || { echo "buf needs npm (Debian: apt-get install npm)" >&2; exit 1; }
	@mkdir -p $(CACHE)/buf
	cd $(CACHE)/buf && npm install --silent --no-audit --no-fund --prefix . @bufbuild/buf@$(BUF_VERSION)
