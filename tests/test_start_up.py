"""Commands and imports load what they need and nothing else: that is what makes them start fast, on any machine."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import autogaze
from tests.test_imports import HEAVY

NEEDED = {"torch", "numpy", "safetensors", "cv2", "PIL", "av"}
# hundredths of a second each, or whole seconds
SLOW = {"torch._dynamo", "torch._inductor", "sympy", "scipy", "pandas", "tqdm", "shtab", *HEAVY}


@cache
def loaded(code: str, words: tuple[str, ...] = ()) -> frozenset[str]:
    """Modules that a fresh interpreter has after `code`, or after a command that is over."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.splitlines()[-1].split())


def command(*words: str) -> frozenset[str]:
    return loaded("from autogaze.cli.main import main; main()", words)


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("nonsense",)])
def test_help_needs_none_of_the_requirements(words: tuple[str, ...]) -> None:
    assert not command(*words) & {*NEEDED, *SLOW}


def test_importing_the_package_imports_no_requirement() -> None:
    assert not loaded("import autogaze") & {*NEEDED, *SLOW}


def test_the_model_needs_little_more_than_torch() -> None:
    bare, model = loaded("import torch"), loaded("from autogaze import AutoGaze")
    more = {name.partition(".")[0] for name in model - bare if not name.startswith("_")}
    assert more - set(sys.stdlib_module_names) <= {
        "autogaze",
        "PIL",
        "av",
        "cv2",
        "safetensors",
        "numpy",
        "cython_runtime",
    }


def test_info_loads_nothing_slow(tiny_checkpoint: Path) -> None:
    bare = loaded("import torch")
    assert not (command("info", str(tiny_checkpoint)) - bare) & SLOW


def test_what_a_command_imports_is_never_searched_for_garbage(tiny_checkpoint: Path) -> None:
    code = (
        "from autogaze.cli.main import main; main(); import gc; assert gc.isenabled() and gc.get_freeze_count() > 9e4"
    )
    assert "torch" in loaded(code, ("info", str(tiny_checkpoint)))


@pytest.mark.parametrize("told", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_sleep_while_they_wait_where_nothing_can_be_compiled(told: dict[str, str]) -> None:
    code = (
        "import os; from autogaze.cli.main import main\n"
        "try: main()\nexcept SystemExit: print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    kept = {"PYTHONPATH": str(Path(autogaze.__file__).parents[1]), "PATH": "/no-compiler", **told}
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, env=kept)
    assert done.stdout.split()[-1] == told.get("OMP_WAIT_POLICY", "passive"), done.stderr


def test_public_names_and_modules_come_when_they_are_used() -> None:
    assert all(getattr(autogaze, name) is not None for name in autogaze.__all__)
    assert set(autogaze.__all__) <= set(dir(autogaze))
    assert "autogaze.model" in loaded("import autogaze; autogaze.model.AutoGazeConfig")
    assert not hasattr(autogaze, "no_such_name")
