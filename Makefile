# Every target does its own set-up: it makes .venv, installs what constraints.txt pins, and says so in one line.
PYTHON ?= python3
PIP := .venv/bin/pip install -qq --disable-pip-version-check
BENCHMARKS ?= debian
PYTEST := .venv/bin/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format wheel-check bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/core  ## train and query a small model on data that comes with the package
	.venv/bin/twotower demo

test: .venv/dev  ## quick tests
	$(PYTEST) -m "not slow"

test-slow: .venv/dev  ## the tests marked slow
	$(PYTEST) -m slow

check: .venv/dev wheel-check  ## format, lint, types, import layers, wheel
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: .venv/dev  ## format and mend what ruff can mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

# The wheel made from the sdist must be complete: it runs from a folder of its own, not from src.
wheel-check: .venv/dev
	rm -rf .venv/dist .venv/wheel
	.venv/bin/python -m build --outdir .venv/dist . > .venv/build.log 2>&1 || { cat .venv/build.log; exit 1; }
	$(PIP) --no-deps --target .venv/wheel .venv/dist/*.whl
	test -f .venv/wheel/twotower/py.typed
	test -f .venv/wheel/twotower/service/page/index.html
	cd .venv/wheel && PYTHONPATH=. ../bin/python -m twotower --help > ../help.txt
	cd .venv/wheel && PYTHONPATH=. ../bin/python -c "import twotower; assert 'wheel' in twotower.__file__, twotower.__file__"

bench: .venv/dev  ## quality benchmarks, BENCHMARKS="debian ..."
	.venv/bin/python -m benchmarks.quality $(BENCHMARKS)

clean:  ## remove the environment and all that the tools leave behind
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "twotower needs Python 3.11 or newer, found: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

# torch first and on its own: with its version settled, nothing that follows can bring in another build of it.
.venv/core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing twotower and its pinned dependencies into .venv (a minute or two the first time)"
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e .
	@touch $@

.venv/dev: .venv/core
	@echo "installing the development tools into .venv"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
