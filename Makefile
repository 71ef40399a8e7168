# On a fresh machine, run `make demo` and `make test`. The other targets are for development.
PYTHON ?= python3
BIN := .venv/bin
# One test process for each core; tests that start Ray share one process (tests/conftest.py).
PYTEST := -m pytest --numprocesses=logical
# Let Python write bytecode: otherwise each process compiles what it imports, and tests start thousands of processes.
RUN := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python

.PHONY: demo test test-long test-gpu test-rig cluster cluster-down check unit lint format bench-quick clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# uv installs the pinned set in parallel; pip alone takes some ten times as long. Bytecode is compiled here, because many images
# set PYTHONDONTWRITEBYTECODE, and then each of Ray's processes would compile torch again.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("raykube needs Python 3.10 to 3.13; name one: make PYTHON=python3.11 ...") if not (3, 10) <= sys.version_info[:2] <= (3, 13) else 0'
	@$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv (Debian)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[local,mlflow,bench,dev]'
	@touch $@

demo: .venv/ready ## train, search, serve and send one request on this machine
	@$(RUN) docs/demo.py

test: .venv/ready ## run the tests, without those of the targets below
	@$(RUN) $(PYTEST) --durations=25 -m "not rig and not long and not gpu"

test-long: .venv/ready ## run the tests that take minutes each
	@$(RUN) -m pytest --durations=25 -m long

test-gpu: .venv/ready ## run the tests that need a GPU
	@$(RUN) -m pytest --durations=25 -m gpu

test-rig: .venv/ready ## run the tests of the test cluster itself; another quarter of an hour
	@$(RUN) -m pytest -m rig

cluster: .venv/ready ## start a real Kubernetes with KubeRay for the tests (root, Debian packages, Go)
	@$(RUN) -m tests.cluster up --install

cluster-down: .venv/ready ## end that Kubernetes; binaries and images stay for the next time
	@$(RUN) -m tests.cluster down

check: .venv/ready ## lint and run the unit tests at the same time; within a minute
	@$(MAKE) --no-print-directory --jobs=2 lint unit

# Unit tests wait half of the time, so run two more processes than there are cores.
unit: .venv/ready
	@$(RUN) $(PYTEST) -q --numprocesses=$$(($$(getconf _NPROCESSORS_ONLN) + 2)) tests/unit

lint: .venv/ready ## check format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/ready ## format, and fix what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-quick: .venv/ready ## run both experiments in short form, and their report
	@$(RUN) -m benchmarks.overhead --quick
	@$(RUN) -m benchmarks.scaling --on local --workers 2 --mode weak --quick
	@$(RUN) -m benchmarks.report

clean: ## remove the environment
	rm -rf .venv
