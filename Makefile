# Needs make, and Python 3.11, 3.12 or 3.13 or uv; everything else is set up in .venv.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
EXPERIMENT ?= quickstart

.PHONY: setup demo test test-slow test-long test-engine testbed replicate gpu docs lint type clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt .ci/setup
	@.ci/setup $(VENV) $(PYTHON)
	@touch $@

demo: setup
	@$(BIN)/python launch/run.py +experiment=$(EXPERIMENT)

test: setup
	$(BIN)/python -m pytest -m 'not slow and not long'

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not long'

# Types every command of README and docs, runs the benchmark of training and the other nano experiments: for when those have
# changed. SHARD=0/4 ... SHARD=3/4 do a quarter each, on as many machines.
SHARD ?=
test-long: setup
	SHARD=$(SHARD) $(BIN)/python -m pytest -m long

# The same tests of data/ and pretrain/ on the other supported megatron-core; its wheels ask for Python 3.12, and run on 3.11.
ENGINE ?= 0.19.2
test-engine: setup
	@$(BIN)/python -m pip download --quiet --no-deps --ignore-requires-python --only-binary=:all: \
	  -d build/engine megatron-core==$(ENGINE)
	@rm -rf build/engine/$(ENGINE)
	@$(BIN)/python -m zipfile -e build/engine/megatron_core-$(ENGINE)-*.whl build/engine/$(ENGINE)
	PYTHONPATH=$(CURDIR)/build/engine/$(ENGINE) $(BIN)/python -m pytest -m 'not slow and not long' tests/data tests/pretrain

# Every post-training method on three nano pairs, into results/unlearning.md; goes on where it was stopped.
testbed: setup
	PYTHONPATH=. $(BIN)/python -m benchmarks.testbed

# Findings of the literature, looked for again: make replicate NAME=dose, or all; goes on where it was stopped.
NAME ?= list
replicate: setup
	@$(BIN)/python launch/replicate.py $(NAME) jobs=2

# On a machine with a GPU, at most 10 minutes: writes results/gpu_DATE.md. Elsewhere it says so, with status 2.
gpu: setup
	@PYTHONPATH=. $(BIN)/python -W ignore -m benchmarks.gpu

# The site, into build/site; a dead link, or a page that is not listed in mkdocs.yml, fails it.
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/limits.py
	PYTHONPATH=. $(BIN)/lint-imports

type: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs build *.egg-info
