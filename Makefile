# Two commands: `make demo` watches a forecaster learn, `make test` checks everything.
# Both make and share .venv and install all they need into it.
#   make demo TORCH_INDEX=https://...   takes torch from another index (a CUDA build, say)
#   make parity OFFICIAL=PATH   is our model the official one? PATH: a checkout of Time-MoE/Time-MoE
#   make speed OFFICIAL=PATH    our training step beside the official one
#   make rivals                 our registry beside trackio, MLflow, TensorBoard and W&B, offline
#   make faults                 writes docs/faults.md and the table of tests/faults from the code
#   make diagnosis              our search for NaN beside torch's and Hugging Face's
PYTHON ?= python3
VENV   := .venv
WORKERS ?= 2
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PARITY := .venv-official
RIVALS := .venv-rivals
DIAGNOSIS := .venv-diagnosis

.PHONY: demo test test-all check install install-dev bench parity speed rivals diagnosis faults checkout clean

demo: install
	@$(BIN)/tsx run sanity --name demo
	@$(BIN)/tsx runs --limit 5
	@echo "next: $(BIN)/tsx dashboard" >&2

test: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not all"

test-all: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: install-dev
	$(BIN)/python -m benchmarks

parity: checkout $(PARITY)/.installed
	$(PARITY)/bin/python -m benchmarks.parity $(OFFICIAL) $(if $(CORPUS),--corpus $(CORPUS))

speed: checkout $(PARITY)/.installed
	$(PARITY)/bin/python -m benchmarks.speed $(OFFICIAL)

rivals: $(RIVALS)/.installed
	$(RIVALS)/bin/python -m benchmarks.rivals $(if $(QUICK),--quick)

diagnosis: $(DIAGNOSIS)/.installed
	$(DIAGNOSIS)/bin/python -m benchmarks.bench_diagnosis

faults: install-dev
	$(BIN)/python -c 'from pathlib import Path; from tsx.diagnostics.catalogue import write_page; \
		Path("docs/faults.md").write_text(write_page(), encoding="utf-8")'
	$(BIN)/python -m tests.faults.page

checkout:
	@test -d "$(OFFICIAL)/time_moe" || { echo "OFFICIAL=$(OFFICIAL): expected a checkout of" \
		"https://github.com/Time-MoE/Time-MoE; usage: make parity OFFICIAL=PATH" >&2; exit 2; }

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tsx needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "no venv for $(PYTHON); on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --group dev
	@touch $@

# The official code wants another huggingface_hub than tsx: an environment of its own.
$(PARITY)/.installed: constraints.txt
	@$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check $(shell grep '^torch==' constraints.txt) \
		transformers==4.40.1 pyyaml msgspec platformdirs psutil
	@touch $@

# The rivals want libraries of their own; without constraints.txt, which holds ours.
$(RIVALS)/.installed: benchmarks/rivals-requirements.txt
	@$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Beside tsx and the torch it is tested with, so that the same loops are played.
$(DIAGNOSIS)/.installed: benchmarks/diagnosis-requirements.txt pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(DIAGNOSIS)
	$(DIAGNOSIS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(DIAGNOSIS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(DIAGNOSIS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(PARITY) $(RIVALS) $(DIAGNOSIS) build/rivals .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
