# make train GAME=pong FRAMES=200000     train an agent; the first call sets .venv up
# make test                              linters, types, tests
# make check                             linters and types alone

GAME   ?= pong
AGENT  ?= ebu
FRAMES ?= 10000000
SEED   ?= 0
# Further flags of train.py, e.g. ARGS="--num-envs 8 --run-dir runs/here"
ARGS   ?=

# The interpreter .venv is made with; the pinned versions are tested on 3.11.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c '' 2>/dev/null && { echo $$python; exit; }; done; echo python3)
# Two test processes of one thread each; PYTEST_ARGS="-n 0 -x tests/ebu" runs some of them in order.
PYTEST_ARGS ?= -n 2 --dist worksteal

VENV := .venv
BIN  := $(VENV)/bin/python
PIP  := $(BIN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Written last, so an interrupted installation is done again.
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev

.PHONY: train test check
.NOTPARALLEL:

train: $(RUN_READY)
	$(BIN) train.py --game $(GAME) --agent $(AGENT) --frames $(FRAMES) --seed $(SEED) $(ARGS)

test: check
	OMP_NUM_THREADS=1 $(BIN) -m pytest $(PYTEST_ARGS)

check: $(DEV_READY)
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

$(RUN_READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is not one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install them, on Debian or Ubuntu with: apt-get install python3-venv" >&2; \
	  exit 1; }
	@echo "Setting up $(VENV): once, PyTorch is a large download"
	@$(BIN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(DEV_READY): $(RUN_READY)
	@echo "Adding the test tools to $(VENV) (once)"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
