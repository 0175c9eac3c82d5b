# Everything a contributor or CI runs. `make help` lists the targets.
#
# All tools live in .venv inside the repository. Only relative paths are used,
# so a checkout under a folder with spaces in its name works.

# The first Python from this list that is new enough; or say PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$p"; break; }; done || true)
ifeq ($(strip $(PYTHON)),)
override PYTHON := python3
endif

PY := .venv/bin/python
TORCH ?= 2.13.0
STAMP := .venv/.installed
SITE_STAMP := .venv/.installed-site
WORKERS ?= 2
CHAPTERS := $(sort $(wildcard chapters/*.ipynb))
# Tests and chapters use one thread each: the models are small, and threads that wait for
# a busy core cost far more than the second core gives.
ONE := OMP_NUM_THREADS=1
# The chapter that does the main job: load, generate, draw sinks and routing.
MAIN := $(wildcard chapters/14_real_weights.ipynb)

# Kernels and tests see the tools of .venv and nothing of the user's own set-up.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export JUPYTER_PLATFORM_DIRS = 1
export JUPYTER_PREFER_ENV_PATH = 1
export IPYTHONDIR = $(CURDIR)/.venv/ipython
export MPLCONFIGDIR = $(CURDIR)/.venv/matplotlib

.DEFAULT_GOAL := help
.PHONY: help setup lint lint-format lint-style lint-types lint-layers lint-spelling lint-notebooks test test-unit test-notebooks test-site notebooks book lab tables wheel lock clean distclean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## make .venv and install the package with its tools

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("gptoss_lite needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)")'
	@test -x $(PY) || "$(PYTHON)" -m venv .venv || { rm -rf .venv; echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv (once; some minutes when nothing is cached) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev,book]'
	@# OpenAI's own model, to compare with. It asks for Python 3.12 and much that its torch part does without.
	@$(PY) -m pip install -qq --disable-pip-version-check --no-deps --ignore-requires-python 'gpt-oss==0.0.9'
	@$(PY) -c 'import matplotlib.pyplot'  # builds the font cache here, not in a notebook
	@touch $(STAMP)

# `make -k lint` goes on after the first kind of finding.
lint: lint-format lint-style lint-types lint-layers lint-spelling lint-notebooks ## format, style, types, import layers, spelling, notebook rules

lint-format: $(STAMP)
	$(PY) -m ruff format --check .

lint-style: $(STAMP)
	$(PY) -m ruff check .

lint-types: $(STAMP)
	$(PY) -m basedpyright

lint-layers: $(STAMP)
	.venv/bin/lint-imports

lint-spelling: $(STAMP)
	$(PY) -m codespell_lib

lint-notebooks: $(STAMP)
	$(PY) book/tools/notebooks.py check

test: test-unit test-notebooks ## every test: unit, parity, doctests, notebooks

test-unit: $(STAMP)
	$(ONE) $(PY) -m pytest -n $(WORKERS) --dist loadfile

test-notebooks: $(STAMP) ## run each chapter and compare with its committed outputs
ifneq ($(CHAPTERS),)
	$(ONE) $(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 300 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg -n $(WORKERS) --dist loadfile $(CHAPTERS)
else
	@echo "No chapters yet."
endif

# After `make book`. WORKERS=1 on a machine with little memory: each worker starts a browser.
test-site: $(SITE_STAMP) ## open every page of the built site in Chromium and check it
	$(ONE) $(PY) -m pytest -n $(WORKERS) --dist worksteal -m site tests/test_site.py tests/test_*_browser.py

$(SITE_STAMP): $(STAMP)
	@$(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[site]'
	@touch $(SITE_STAMP)

notebooks: $(STAMP) ## run every chapter from scratch and keep the outputs
	$(ONE) $(PY) book/tools/notebooks.py run

book: $(STAMP) ## run the main chapter, build the site, check it
ifneq ($(MAIN),)
	$(ONE) $(PY) book/tools/notebooks.py run --to _build/run $(MAIN)
endif
	$(PY) book/tools/vendor.py
	.venv/bin/jupyter-book build . -W -n --keep-going --all --quiet
	$(PY) book/tools/check_site.py _build/html
	@echo "Open this file in a browser: $$PWD/_build/html/index.html"

lab: $(STAMP) ## open the chapters in JupyterLab
	@$(PY) -c 'import jupyterlab' 2>/dev/null || $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt 'jupyterlab>=4.2'
	$(PY) -m jupyterlab chapters

tables: $(STAMP) ## print how far each rung is from its published class, and what each mutant moves
	.venv/bin/gptoss-lite parity
	OMP_NUM_THREADS=1 $(PY) -m gptoss_lite.mutants

wheel: $(STAMP) ## build the wheel into dist/ and check what is inside
	rm -rf dist
	$(PY) -m pip wheel -qq --disable-pip-version-check . --no-deps --wheel-dir dist
	$(PY) book/tools/check_wheel.py dist

lock: ## rewrite constraints.txt (give it the oldest Python: PYTHON=python3.11)
	rm -rf _build/lock && "$(PYTHON)" -m venv _build/lock
	_build/lock/bin/python -m pip install -qq 'torch==$(TORCH)' '.[dev,book,site]'
	_build/lock/bin/python -m pip freeze --exclude gptoss_lite | sed -E 's/\+(cpu|cu[0-9]+)$$//' | \
		grep -vE '^(nvidia-|cuda-|triton)' | LC_ALL=C sort -f > constraints.txt

clean: ## remove what was built (not .venv)
	rm -rf _build dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv book/_static/mathjax
