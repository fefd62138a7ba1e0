"""The installed package: every file that the package reads, every extra that a message names."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from autogaze.extras import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autogaze"


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def as_regex(pattern: str) -> str:
    parts = [re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("**")]
    return ".*".join(parts)


def test_every_file_that_is_no_module_is_packaged(setup: configparser.ConfigParser) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    tracked = subprocess.run(["git", "ls-files", "autogaze"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name.removeprefix("autogaze/") for name in tracked.stdout.splitlines() if not name.endswith(".py")]
    patterns = [as_regex(pattern) for pattern in setup["options.package_data"]["autogaze"].split()]
    assert len(files) > 5
    assert [name for name in files if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_every_extra_that_a_message_names_exists(setup: configparser.ConfigParser) -> None:
    named = set(PACKAGES.values())
    for path in [*PACKAGE.rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for group in re.findall(r"(?:autogaze|install \"?\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
            named |= set(group.split(","))
    assert {"train", "export", "demo"} <= named <= set(setup["options.extras_require"])


def test_the_pinned_versions_meet_the_stated_ranges(setup: configparser.ConfigParser) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    versions = {name.lower().replace("_", "-"): version for name, version in pins}
    stated = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    lines = [line for line in stated.splitlines() if line and not line.startswith(("#", "autogaze["))]
    for line in lines:
        requirement = requirements.Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(versions[requirement.name.lower().replace("_", "-")]), line


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, in a folder that has the package's name."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    folder = tmp_path_factory.mktemp("somewhere") / "autogaze"
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"):
        if name.startswith(("autogaze/", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "constraints.txt")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(clone: Path, out: Path, hook: str) -> Path:
    """The files that pip gets from the build backend, without a network."""
    setuptools = tuple(map(int, version("setuptools").split(".")[:2]))
    if setuptools < (70, 1):
        pytest.skip(f"needs setuptools 70.1 or later, which builds wheels; here is {version('setuptools')}")
    code = f"import setuptools.build_meta as backend; print(backend.{hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def tracked(clone: Path) -> set[str]:
    files = (path.relative_to(clone) for path in (clone / "autogaze").rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts and not path.name.startswith(".")}


def test_wheel_and_sdist_hold_the_whole_package(clone: Path, tmp_path: Path) -> None:
    files = tracked(clone)
    wheel = build(clone, tmp_path, "build_wheel")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        entry_points = archive.read(next(name for name in inside if name.endswith("entry_points.txt"))).decode()
    assert {name for name in inside if ".dist-info/" not in name} == files
    assert wheel.name.endswith("-py3-none-any.whl") and "autogaze = autogaze.cli.main:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    with tarfile.open(build(clone, tmp_path, "build_sdist")) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    assert files | {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} <= source


def test_an_editable_install_is_found_from_the_folder_of_the_clone(clone: Path, tmp_path: Path) -> None:
    """There, a folder `autogaze` that is no package comes first on the path."""
    with zipfile.ZipFile(build(clone, tmp_path, "build_editable")) as wheel:
        wheel.extractall(tmp_path / "site")
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import autogaze; print(autogaze.__file__)"
    free = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=clone.parent, env=free, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == clone / "autogaze" / "__init__.py"
