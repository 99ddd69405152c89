# make demo    the report on the bundled model, from nothing: environment, installation, report
# make test    lint, types and tests, from nothing
# make bench   the benchmarks beside TransformerLens 2.18, which gets an environment of its own
# make venv    only the environment; made again when pyproject.toml or constraints.txt change

PYTHON ?= python3
VENV := .venv
PEER := .venv-peer
BIN := $(VENV)/bin
PEER_PACKAGES := transformer_lens==2.18.0 torch==2.13.0 "numpy<2" "pyarrow<19" "datasets<4" circuitsvis==1.43.3
PATHS := $(wildcard src tests benchmarks examples)
BENCHMARKS := $(filter-out benchmarks/peer.py,$(shell grep -ls '^if __name__ == "__main__"' benchmarks/*.py))

# Small matrices gain nothing from threads, and comparisons gain calm.
export OMP_NUM_THREADS ?= 1

.PHONY: help venv demo test lint types pytest bench format clean

help:
	@grep '^# make' Makefile | cut -c3-

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "cutaway needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,notebook,plots]"
	@touch $@

demo: venv
	$(BIN)/cutaway report first-unique-char --out out/first-unique-char

test: lint types pytest

lint: venv
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)

types: venv
	$(BIN)/mypy

pytest: venv
	$(BIN)/pytest

format: venv
	$(BIN)/ruff check --fix $(PATHS)
	$(BIN)/ruff format $(PATHS)

# The peer's pins contradict ours (NumPy 1, an older transformers), so it never shares our environment.
$(PEER)/.installed: Makefile
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet $(PEER_PACKAGES)
	@touch $@

ifdef CUTAWAY_PEER_PYTHON
bench: venv
else
bench: export CUTAWAY_PEER_PYTHON = $(PEER)/bin/python
bench: venv $(PEER)/.installed
endif
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) $(PEER) out build dist
