"""The Dockerfile, as far as it can be checked where no container engine is: files, shell, and who may write what."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, rest) of every step."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    return re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", text, re.M)


def of(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in steps if name == instruction]


def test_everything_that_is_copied_is_there_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [source for rest in of(steps, "COPY") for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() and source not in ignored for source in sources)
    setup = (ROOT / "setup.cfg").read_text()
    assert set(re.findall(r"(?:= file: |license_files = )(\S+)", setup)) <= set(sources)


@pytest.mark.parametrize(("variant", "code"), [("cuda", 0), ("cpu", 0), ("rocm", 2)])
def test_the_variants_install_what_they_say(steps: list[tuple[str, str]], variant: str, code: int) -> None:
    """The shell of the last RUN with everything that it calls replaced by echo."""
    stubs = "".join(f'{name}() {{ echo "{name} $@"; }}\n' for name in ("pip", "useradd", "chmod"))
    done = subprocess.run(
        ["sh", "-e", "-c", stubs + of(steps, "RUN")[-1]],
        env={"VARIANT": variant, "EXTRAS": "all", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    if code == 0:
        assert ("whl/cpu" in done.stdout) == (variant == "cpu") and ".[all]" in done.stdout
        assert "chmod 1777 /home/user" in done.stdout
    else:
        assert "VARIANT must be cuda or cpu, got rocm" in done.stderr


def test_any_user_may_run_it_and_compile_at_run_time(steps: list[tuple[str, str]]) -> None:
    assert of(steps, "USER") == ["user"] and "HOME=/home/user" in of(steps, "ENV")[0]
    assert any("apt-get install" in rest and "g++" in rest for rest in of(steps, "RUN"))
    assert of(steps, "ENTRYPOINT") == ['["autogaze"]']
