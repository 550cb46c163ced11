# Needs Python 3.11 or 3.12 and make; everything else is set up in .venv.
PYTHON ?= python3
TORCH ?= 2.13.0
BIN := .venv/bin
EXPERIMENT ?= quickstart

.PHONY: setup demo test test-slow test-long lint type clean

setup: .venv/.done

# Without a GPU, torch goes first and by version: a bare `torch` may resolve to gigabytes of CUDA packages.
.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "palimpsest: $$($(PYTHON) --version) is not supported; use Python 3.11 or 3.12: make PYTHON=python3.11"; exit 2; }
	@echo "setting up .venv (about 1 minute; the download is about 400 MB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==$(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	@$(BIN)/python launch/run.py +experiment=$(EXPERIMENT)

test: setup
	$(BIN)/python -m pytest -m 'not slow and not long'

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Types every command of the README, runs the benchmark of training and the other nano experiments: for when those have
# changed.
test-long: setup
	$(BIN)/python -m pytest -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports

type: setup
	$(BIN)/mypy

clean:
	rm -rf .venv runs build *.egg-info
