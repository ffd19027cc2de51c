# make train                             a first look, in about ten minutes; the first call sets .venv up
# make train GAME=pong FRAMES=1M         another game, with the default preset
# make test                              linters, types, and the tests that take minutes at most
# make test-all                          the slow tests too: whole runs, killed and resumed
# make check                             linters and types alone
# make test-cpus                         tests with the instructions of this processor and of older ones
# make fuzz                              100,000 damaged files and 2,000 command lines, at most 30 minutes
# make faults                            kills, failing calls, damaged files, at most 90 minutes
# make soak                              30 minutes of training in constant memory
# make reproduce                         one more run of committed results: does it score as they do?
# make docs-check                        every command of README and docs, shortened

# Without GAME: one in which a small network learns within ten minutes on one core.
ifndef GAME
GAME   := kung_fu_master
FRAMES ?= 130000
FIRST_LOOK := --network net2 --epsilon-decay-steps 10000 --eval-episodes 30 --threads 1
endif
AGENT  ?= ebu
# Without FRAMES: as many as train.py takes for the game.
FRAMES ?=
SEED   ?= 0
# Further flags of train.py or studies.reproduce, e.g. ARGS="--num-envs 8 --run-dir runs/here"
ARGS   ?=

# Committed results of which `make reproduce` plays one with another seed: the cell with most
# seeds, at least five. Of these results it takes two minutes.
RESULTS ?= docs/results/environments

# The interpreter .venv is made with; the pinned versions are tested on 3.11.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '' 2>/dev/null && { echo $$python; exit; }; done; echo python3)
# Two test processes of one thread each; PYTEST_ARGS="-n 0 -x tests/ebu" runs some of them in order.
PYTEST_ARGS ?= -n 2 --dist worksteal

VENV := .venv
BIN  := $(VENV)/bin/python
PIP  := $(BIN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Written last, so an interrupted installation is done again.
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev

TEST := OMP_NUM_THREADS=1 $(BIN) -m pytest $(PYTEST_ARGS)
# Instructions that torch, oneDNN and MKL are held to: the last bits of a result depend on them.
AVX2   := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
LOWEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2

# One word of the shell: games are called Ms. Pac-Man, Up'n Down and Q*bert.
quote = '$(subst ','\'',$(1))'

.PHONY: train test test-all test-cpus fuzz faults soak reproduce check docs-check
.NOTPARALLEL:

train: $(RUN_READY)
	$(BIN) train.py --game $(call quote,$(GAME)) --agent $(call quote,$(AGENT)) \
		$(if $(FRAMES),--frames $(call quote,$(FRAMES))) --seed $(call quote,$(SEED)) $(FIRST_LOOK) $(ARGS)

test: check
	$(TEST) -m "not slow"

test-all: check
	$(TEST)

# At AVX2 only what compares bits; much of the rest plays games.
test-cpus: $(DEV_READY)
	$(TEST)
	$(AVX2) $(TEST) tests/agents tests/ebu
	$(LOWEST) $(TEST)

fuzz: $(DEV_READY)
	OMP_NUM_THREADS=1 $(BIN) -m tests.fuzz

faults: $(DEV_READY)
	OMP_NUM_THREADS=1 $(BIN) -m tests.faults

soak: $(DEV_READY)
	OMP_NUM_THREADS=1 $(BIN) -m tests.soak

reproduce: $(RUN_READY)
	$(BIN) -m studies.reproduce --results $(call quote,$(RESULTS)) $(ARGS)

check: $(DEV_READY)
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	$(VENV)/bin/lint-imports

docs-check: $(RUN_READY)
	$(BIN) -m docs.check

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
	@$(PIP) --no-build-isolation -e '.[export,factorize,maze]'
	@touch $@

$(DEV_READY): $(RUN_READY)
	@echo "Adding the test tools to $(VENV) (once)"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
