# One command each; everything lives in .venv and nothing outside of this folder is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast lint bench constraints clean

help:  ## show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

env: $(VENV)/.complete  ## make .venv with everything for development

$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make env PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "this Python has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV): about 1.5 GB, 2-4 minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: env  ## raw files to a calibrated ensemble on small sample data (under 6 minutes on 2 cores)
	$(BIN)/gfm demo --out $(OUT)

test: env  ## all tests; what this machine lacks is skipped with its reason
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: env  ## the tests of a coffee sip: no marker slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

lint: env  ## formatting, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env  ## all short benchmarks, written to benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run_all.py

constraints: env  ## pin what is installed now (start from a fresh .venv)
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove caches and the demo's output, not the environment
	rm -rf $(OUT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
