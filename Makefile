# `make demo` and `make test` do all set-up themselves, in .venv; `make test-lowest` in .venv-lowest.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
INSTALL_LOWEST = $(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct

.DELETE_ON_ERROR:
.PHONY: demo test test-kernels test-examples test-fast test-lowest smoke-lowest lint types contracts coverage mutants check dist bench tables sweep gpu gpu-dry explorer docs

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/installed
	mkdir -p demo && cd demo && ../$(BIN)/python ../examples/quickstart.py
	$(BIN)/python examples/compare_encodings.py --out demo
	rm -rf demo/pedestrians demo/reid
	$(BIN)/python examples/reid/demo.py --out demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not kernels and not examples"

# The fused kernels, interpreted and compiled without a GPU: long, and apart from all else.
test-kernels: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m kernels tests/attention tests/conformance

# Whole trainings of the examples, killed and resumed, in several processes, drawn in a browser.
test-examples: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m examples tests/reid tests/examples

test-fast: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not kernels and not examples"

# The lowest versions that pyproject.toml states: of the core, then of everything.
.venv-lowest/core: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest
	$(LOWEST)/python -m pip install --quiet uv
	$(INSTALL_LOWEST) --editable .
	touch $@

.venv-lowest/all: .venv-lowest/core
	$(INSTALL_LOWEST) --editable ".[dev]"
	touch $@

smoke-lowest: .venv-lowest/core
	$(LOWEST)/python -W error tests/smoke.py

test-lowest: .venv-lowest/all
	$(LOWEST)/python -m pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

contracts: .venv/installed
	$(BIN)/lint-imports --config setup.cfg

# What is published: built, and tried where only it is installed.
dist: .venv/installed
	$(BIN)/python .ci/dist.py

# How good the tests are: the lines and branches that they run, and how many of 300 small changes of
# the code they notice. Both take long, and are no part of `make check`.
.venv/quality: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[quality]"
	touch $@

runs/coverage/tests.xml: .venv/quality $(shell git ls-files posenc tests)
	mkdir -p runs/coverage
	COVERAGE_FILE=runs/coverage/.coverage $(BIN)/python -m pytest -n 2 --dist worksteal \
		-m "not kernels and not examples" --cov --cov-context=test --cov-report= --cov-fail-under=0 --junitxml=$@

coverage: runs/coverage/tests.xml
	$(BIN)/python -m coverage json --quiet --data-file=runs/coverage/.coverage -o runs/coverage/all.json
	$(BIN)/python -c 'import json; print(json.load(open("runs/coverage/all.json"))["totals"])'
	$(BIN)/python -m coverage report --data-file=runs/coverage/.coverage

mutants: runs/coverage/tests.xml
	$(BIN)/python .ci/mutants.py

check: lint types contracts test test-kernels test-examples

bench: .venv/installed
	$(BIN)/python benchmarks/bench_attention.py
	$(BIN)/python benchmarks/bench_model.py

# On a machine with a GPU, with its own Python: nothing is installed.
OUT ?= runs/gpu
MINUTES ?= 8
gpu:
	$(PYTHON) benchmarks/on_gpu.py --minutes $(MINUTES) --out $(OUT) $(if $(IRPE),--irpe-repo $(IRPE))

gpu-dry: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/on_gpu.py --dry --minutes 30 --out runs/gpu-dry

tables: .venv/installed
	$(BIN)/python docs/tables.py

# The site, docs/_build/html. A warning is an error, and so is a link that leads nowhere.
docs: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

sweep: .venv/installed
	$(BIN)/python docs/sweep.py

# The page of `posenc explore`, from its source: needs node, and only where that source was changed.
explorer:
	cd posenc/explorer/front && npm ci && npm run build
