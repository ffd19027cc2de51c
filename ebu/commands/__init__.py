"""The commands: train, evaluate, study, report, distill, export, import, release."""

import os
import signal
import sys
from importlib.util import find_spec

# Ctrl-C while a command loads its packages ends it without a traceback; the programs' own files
# are named after the commands, and Python calls a module that it starts "-m" until it has found it.
_PROGRAM = os.path.basename(sys.argv[0]).removesuffix(".py").removeprefix("ebu-")
_COMMANDS = "train", "evaluate", "study", "report", "distill", "export", "import", "release"
if _PROGRAM in (*_COMMANDS, "-m") and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if _PROGRAM in _COMMANDS:
    for _package in ("ale_py", "gymnasium", "numpy", "tensorboard", "torch", "tqdm", "tyro"):
        if find_spec(_package) is None:
            sys.exit(
                f"error: {_package} is not installed for {sys.executable}: make train makes .venv, "
                f"which has it; then type .venv/bin/python {sys.argv[0]}"
            )
