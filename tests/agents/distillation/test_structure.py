"""What distillation imports: nothing experimental unasked, and no torch for a usage error."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from agents.distillation.settings import EXPERIMENTAL, load_experimental

ROOT = Path(__file__).parents[3]
USAGE = """
import sys
from ebu.commands import distill
from ebu.errors import UsageError
sys.argv = ["distill.py", *sys.argv[1:]]
try:
    distill.main()
except (UsageError, SystemExit) as end:
    print(repr(end))
print("torch" in sys.modules)
"""


def run_python(program: str, *args: str) -> str:
    command = [sys.executable, "-c", program, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_code(module: str) -> bool:
    """Whether a module holds more than its docstring."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(ast.parse(path.read_text(encoding="utf-8")).body) > 1


def test_a_plain_run_imports_17_files_and_none_of_the_experimental_ones() -> None:
    before, after = (
        [name for name in line.split() if name.startswith("agents.distillation")]
        for line in run_python(
            "import sys, ebu.commands.train, ebu.commands.trainer\nprint(*sys.modules)\n"
            "import ebu.commands.distilling.run\nprint(*sys.modules)"
        ).splitlines()
    )
    # Training without students imports nothing of distillation.
    assert before == []
    assert len([module for module in after if has_code(module)]) <= 17
    assert not [module for module in after if "experimental" in module]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--help", "SystemExit(0)"),
        ("runs/none --out o --students nett2", "did you mean net2"),
        ("runs/none --out o --baselines kl+hnt=1", "did you mean hint"),
    ],
)
def test_help_and_usage_errors_import_no_torch(flags: str, said: str) -> None:
    printed = run_python(USAGE, *flags.split()).splitlines()
    assert said in printed[-2]
    assert printed[-1] == "False"


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_everything_registered_can_be_imported(name: str) -> None:
    assert load_experimental(name).__doc__
