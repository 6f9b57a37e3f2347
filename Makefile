# The two commands a newcomer needs: `make demo` and `make test`. Both need only python3 (>= 3.11), venv and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: demo test parity lint bench torture clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed  ## trains teachers and matched students on the bundled digits, prints table and report
	$(BIN)/python -m jaxkd.main study --config=configs/study.py:digits --workdir=runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

parity: $(VENV)/.installed-parity  ## live comparisons with torch and transformers, compiling for H100; about 2 GB more on disk
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/parity tests/weights tests/lowering

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(VENV)/.installed-parity  ## all benchmarks, half an hour on 2 cores; writes results/bench_*.json and one table and plot
	$(BIN)/python -m bench.all

torture: $(VENV)/.installed-test  ## kills runs at random and compares their ends; writes results/torture.json
	$(BIN)/python -m bench.torture --kills 20

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing jaxkd and its dependencies (about 1 GB on disk, a minute or two)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-parity: $(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
