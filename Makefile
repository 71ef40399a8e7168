# Two commands on a fresh machine: `make demo` and `make test`. The rest serves development.
PYTHON ?= python3
BIN := .venv/bin
# One process of tests for each core; those that start Ray stay in one (tests/conftest.py).
PYTEST := -m pytest --numprocesses=logical
# Where Python may write no bytecode, each process would compile what it imports, and tests start thousands of them.
RUN := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python

.PHONY: demo test test-long test-gpu test-rig cluster cluster-down check unit lint format bench-quick clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# uv installs the pinned set in parallel; pip alone takes some ten times as long. Where the environment keeps Python from
# writing bytecode (PYTHONDONTWRITEBYTECODE, as in many images), each of Ray's processes would compile torch anew: compiled here.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("raykube needs Python 3.10 to 3.13; name one: make PYTHON=python3.11 ...") if not (3, 10) <= sys.version_info[:2] <= (3, 13) else 0'
	@$(PYTHON) -m venv .venv || { echo "no venv module: apt-get install python3-venv (Debian)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[local,mlflow,bench,dev]'
	@touch $@

demo: .venv/ready ## train, search, serve and ask: the main job on this machine
	@$(RUN) docs/demo.py

test: .venv/ready ## the tests
	@$(RUN) $(PYTEST) --durations=25 -m "not rig and not long and not gpu"

test-long: .venv/ready ## those that take minutes each
	@$(RUN) -m pytest --durations=25 -m long

test-gpu: .venv/ready ## those that need a GPU
	@$(RUN) -m pytest --durations=25 -m gpu

test-rig: .venv/ready ## the tests of the test cluster itself, which need another quarter of an hour
	@$(RUN) -m pytest -m rig

cluster: .venv/ready ## start a real Kubernetes with KubeRay for the tests (root, Debian packages, Go)
	@$(RUN) -m tests.cluster up --install

cluster-down: .venv/ready ## end it; binaries and images stay for the next time
	@$(RUN) -m tests.cluster down

check: .venv/ready ## lint, and unit tests beside it; within a minute
	@$(MAKE) --no-print-directory --jobs=2 lint unit

# Half of a unit test's time is spent waiting: two processes more than cores.
unit: .venv/ready
	@$(RUN) $(PYTEST) -q --numprocesses=$$(($$(getconf _NPROCESSORS_ONLN) + 2)) tests/unit

lint: .venv/ready ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/ready ## format, and mend what ruff can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench-quick: .venv/ready ## both experiments in short, and their report
	@$(RUN) -m benchmarks.overhead --quick
	@$(RUN) -m benchmarks.scaling --on local --workers 2 --mode weak --quick
	@$(RUN) -m benchmarks.report

clean: ## remove the environment
	rm -rf .venv
