# Everything from a clone, on a machine with Python >= 3.11, git and make: `make report`, `make test`.
# The first command makes .venv and installs the pinned versions of constraints.txt. If a virtual
# environment is active, that one is used. Variables: PYTHON=python3.12 chooses the interpreter,
# VENV_ARGS=--system-site-packages lets .venv see a torch that the machine already has, TIER=smoke
# the size of the report's grid.

PYTHON ?=
VENV_ARGS ?=
TIER ?= standard
# The table of methods in README.md is that of the standard tier, whatever else is run.
TABLE := $(if $(filter standard,$(TIER)),--readme README.md)

ACTIVE := $(if $(VIRTUAL_ENV),$(wildcard $(VIRTUAL_ENV)/bin/python))
VENV := $(if $(ACTIVE),$(VIRTUAL_ENV),.venv)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.specbp-installed
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)

.DEFAULT_GOAL := help
.PHONY: help report test smoke gate faults suite mutation train overhead precision budgets planner density gradients learn experiments lint format types install clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

report: $(STAMP) ## verify every estimator and write reports/accuracy/index.html
	@$(PY) -m verification run --tier $(TIER); verdict=$$?; [ $$verdict -le 1 ] || exit $$verdict; \
	$(PY) -m verification report --tier $(TIER) $(TABLE) && exit $$verdict

test: $(STAMP) lint types ## lint, types, tests, doctests and the README's examples
	$(PY) -m pytest

smoke: $(STAMP) ## verify a small grid, in a few minutes
	$(PY) -m verification run --tier smoke

gate: $(STAMP) ## judge every estimator; exit status 1 on a FAIL
	$(PY) -m verification gate

faults: $(STAMP) ## which planted faults the checks catch
	$(PY) -m verification faults

suite: $(STAMP) ## kill matrix and false alarms, kept for the report
	$(PY) -m verification faults --keep
	$(PY) -m verification control --keep

mutation: $(STAMP) ## change the source, one place at a time, and see the tests notice
	$(PY) -m verification.mutation

train: $(STAMP) ## train the models whose Jacobians are verified
	$(PY) -m verification train

overhead: $(STAMP) ## time every estimate against its products alone
	$(PY) -m verification overhead

precision: $(STAMP) ## what float32 leaves of log det, against the condition number
	$(PY) -m verification precision

budgets: $(STAMP) ## judge estimators at equal measured products
	$(PY) -m verification budgets

planner: $(STAMP) ## judge method="auto" against the best method in hindsight
	$(PY) -m verification planner

density: $(STAMP) ## spectral densities against known spectra
	$(PY) -m verification density

gradients: $(STAMP) ## gradient estimators against exact gradients: noise, memory, time
	$(PY) -m verification.experiments.gradients

learn: $(STAMP) ## the paper's learning in two dimensions, safe and as printed (half an hour)
	$(PY) -m verification.experiments.learn_2d --ablate

experiments: gradients learn ## these two, and what bounds densities from outside: preimages, flows, AIS, Stein
	$(PY) -m verification.experiments.preimages --checkpoints .results/learn_2d/networks
	$(PY) -m verification.experiments.realnvp
	$(PY) -m verification.experiments.noisy_decoder
	$(PY) -m verification.experiments.stein

lint: $(STAMP) ## ruff: rules and formatting
	$(PY) -m ruff check
	$(PY) -m ruff format --check

format: $(STAMP) ## repair what ruff can repair
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

types: $(STAMP) ## mypy
	$(PY) -m mypy

install: $(STAMP) ## make the environment and install the pinned versions

clean: ## remove caches, stored results and build output; .venv stays
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .results dist
	find specbp verification tests -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt | $(PY)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: specbp needs Python >= 3.11, but $(VENV) has $$($(PY) --version 2>&1). Deactivate or remove it, then run make again." >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade
	@echo "Installing the versions of constraints.txt into $(VENV); this takes minutes when torch has to be downloaded"
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[verify,dev]'
	@touch $@

# The first candidate that is new enough and can make an environment.
$(PY):
	@for python in $(CANDIDATES); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$python, $$($$python --version)"; \
	        $$python -m venv --clear $(VENV_ARGS) $(VENV); exit; \
	    fi; \
	done; \
	echo "error: specbp needs Python >= 3.11 with the modules venv and ensurepip (on Debian: python3-venv). Found:" >&2; \
	for python in $(CANDIDATES); do \
	    command -v $$python >/dev/null && echo "  $$python: $$($$python --version 2>&1 | head -n 1)" >&2; \
	done; \
	echo "Install one, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1
