# Every target does its own set-up in a virtual environment that it makes. `make demo` and `make test` are where to begin.
VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter new enough for the libraries (zarr 3 and pandas 3 need Python 3.11).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: demo test lab bench export check clean

demo: $(VENV)/installed
	$(BIN)/neuronbench demo

lab: $(VENV)/installed
	$(BIN)/neuronbench lab

test: $(VENV)/installed
	$(BIN)/python .ci/build.py chromium
	$(BIN)/python .ci/build.py scripts
	$(BIN)/python .ci/build.py check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

bench: $(VENV)/installed
	$(BIN)/python tests/bench/run.py

# For developers: cleans the notebooks, and makes the modules and README.md from them; formats the widgets' scripts.
export: $(VENV)/installed
	$(BIN)/python .ci/build.py export
	$(BIN)/python .ci/build.py scripts
	$(BIN)/python .ci/build.py format

check: $(VENV)/installed
	$(BIN)/python .ci/build.py check
	$(BIN)/python .ci/build.py scripts
	$(BIN)/python -m pytest -q tests/test_scripts.py

$(VENV)/installed: settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "NeuronBench needs Python 3.11 or later; none was found. Install it, or run: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist artifacts *.egg-info tests/js/node_modules
