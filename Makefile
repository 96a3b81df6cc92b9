# Everything sets itself up: a machine needs Python >= 3.11, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench faults fuzz check format install docs clean

demo: $(READY)  ## a sweep on the handwritten digits, its ranking, an exported model and three predictions
	@rm -rf demo
	$(BIN)/convsweep sweep --data digits --trials 12 --epochs 10 --validation-fraction 0.25 --name demo --experiments demo/experiments
	$(BIN)/convsweep export demo --experiments demo/experiments --to demo/bundle --samples 3
	$(BIN)/convsweep predict demo/bundle demo/bundle/samples
	@echo
	@echo "The ranked trials in a web page:  $(BIN)/convsweep dashboard --experiments demo/experiments"

test: $(READY)  ## all tests; those that need MNIST and CIFAR-10 look for them under CONVSWEEP_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not lab and not browser" --numprocesses logical --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -m "slow or lab or browser"

check: $(READY)  ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## measure the promises; MNIST and CIFAR-10 under CONVSWEEP_DATA
	$(BIN)/python -m bench.promises
	$(BIN)/python -m bench.sweep --trials 16
	$(BIN)/python -m bench.sweep --trials 64
	$(BIN)/python -m bench.train
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.nodes
	$(BIN)/python -m bench.search
	$(BIN)/python -m bench.gpu
	$(BIN)/python -m bench.predict
	$(BIN)/python -m bench.report
	$(BIN)/python -m bench.tasks
	$(BIN)/python -m bench.bundles

faults: $(READY)  ## break sweeps on purpose and see that nothing is lost; FAULTS="--kills 2 --trials 12" for the short form
	$(BIN)/python -m bench.faults $(FAULTS)

fuzz: $(READY)  ## throw damaged and hostile input at what reads files
	$(BIN)/python -m bench.fuzz

docs: $(READY)  ## write what is derived from the code: tables, the tree, the cluster files
	$(BIN)/python -m tests.derived_docs

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "convsweep needs Python 3.11 or newer: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
