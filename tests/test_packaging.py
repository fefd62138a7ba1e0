"""What is installed: every file that the package reads, every extra that a message names."""

from __future__ import annotations

import configparser
import re
import subprocess
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
