"""Targets of the pages exist: links and their anchors, files, commands and their options. Nothing is fetched."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from autogaze.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "autogaze" / "weights").rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
# words of other programs that stand beside ours
OTHERS = ("pip", "docker", "torchrun", "srun", "cmake", "ray", "lmms_eval", "tensorboard", "make", "apt-get", "jupyter")
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def words_of(path: Path) -> str:
    """The text of a page, of a notebook that of its cells of words."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


def anchors(path: Path) -> set[str]:
    """The names of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", FENCE.sub("", words_of(path)), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", words_of(path))):
        if re.match(r"https?://[\w.-]+\.\w+(/|$)", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        if (ROOT / "docs") in path.parents:
            assert (ROOT / "docs") in file.parents, f"{path.name}: the site does not have {target}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target}, of {sorted(anchors(file))}"


@every_page
def test_files_that_are_named_are_there(path: Path) -> None:
    named = [span for span in SPAN.findall(words_of(path)) if re.fullmatch(r"[\w./-]+/[\w.-]+\.\w{2,5}", span)]
    ours = [span for span in named if (ROOT / span.split("/")[0]).is_dir() and span.split("/")[0] not in ("rl",)]
    missing = [span for span in ours if not (ROOT / span).exists()]
    assert not missing, f"{path.name}: {missing}"


def commands(path: Path) -> list[str]:
    """Commands of shell blocks, and those that stand in a line of text."""
    text = words_of(path)
    shell = [code for language, code in FENCE.findall(text) if language in ("bash", "console")]
    lines = [line.removeprefix("$ ") for code in shell for line in code.replace("\\\n", " ").splitlines()]
    spans = [span for span in SPAN.findall(FENCE.sub("", text)) if " " in span]
    starts = ("autogaze ", "python ", *(f"{other} " for other in OTHERS))
    return [line.split("  #")[0] for line in [*lines, *spans] if line.startswith(starts)]


@cache
def options_of(verb: str) -> frozenset[str]:
    """Every option of a verb of `autogaze`."""
    parser = cli._parser([verb])
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert verb in verbs.choices, f"no command `autogaze {verb}`"
    return frozenset(option for action in verbs.choices[verb]._actions for option in action.option_strings)


@cache
def options_in(file: Path) -> frozenset[str]:
    """Every option that a module's own parser takes, read from its source."""
    return frozenset(re.findall(r'"(--[\w-]+)"', file.read_text(encoding="utf-8")))


def check_command(command: str) -> None:
    """Fail on a verb, a module, a target or an option that is not there."""
    words = shlex.split(command.replace("...", " "))
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "autogaze" or (words[0] in ("torchrun", "srun") and "autogaze" in words):
        verb = words[words.index("autogaze") + 1]
        given &= set(words[words.index("autogaze") :])
        known = options_of(verb) if not verb.startswith("-") else {"--version", "--help", "--print-completion"}
    elif words[:2] == ["python", "-m"]:
        spec = importlib.util.find_spec(words[2])
        assert spec is not None and spec.origin is not None, f"no module for `{command}`"
        known = options_in(Path(spec.origin))
    elif words[0] == "python":
        known = options_in(ROOT / words[1])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, f"no target for `{command}`"
        return
    else:
        return
    assert given <= known, f"`{command}` has no option {sorted(given - known)}"


@every_page
def test_commands_and_their_options_exist(path: Path) -> None:
    for command in commands(path) if path.name != "CHANGELOG.md" else ():  # what there was stays said
        check_command(command)


@every_page
def test_options_in_the_text_are_those_of_a_command(path: Path) -> None:
    known = {option for verb in cli.VERBS for option in options_of(verb)} | {"--version", "--print-completion"}
    for module in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")):
        known |= options_in(module)
    prose = FENCE.sub("", words_of(path))
    spans = {span for span in SPAN.findall(prose) if span.startswith("--")}
    foreign = {span for span in spans if span.split()[0].partition("=")[0] not in known}
    assert foreign <= {"--ntasks-per-node"}, f"{path.name}: no command has {sorted(foreign)}"


def test_the_readme_is_short_and_no_sentence_is_a_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 140
    text = re.sub(r"^\|.*$", "", FENCE.sub("", readme), flags=re.M)
    for markup in (r"<!--.*?-->", r"\]\([^)]*\)", SPAN.pattern):
        text = re.sub(markup, "", text, flags=re.S)
    for paragraph in text.split("\n\n"):
        for sentence in re.split(r"(?<=[.:;?])\s+(?=[A-Z*\[\d])", " ".join(paragraph.split())):
            figures = re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w-])", sentence)
            assert len(figures) <= 2, sentence


def imported_by(code: str) -> set[str]:
    """Full names of what a piece of code takes from the package."""
    statements = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in statements if node.module and node.module.partition(".")[0] == "autogaze"]
    return {f"{node.module}.{name.name}" for node in ours for name in node.names}


def test_everything_that_pages_and_examples_import_is_in_the_reference() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    codes = [code for page in pages for language, code in FENCE.findall(page.read_text()) if language == "python"]
    codes += [example.read_text() for example in (ROOT / "examples").glob("*.py")]
    reference = re.findall(r"^::: (\S+)", "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md")), re.M)
    known = {*reference, "autogaze.GazedViT"}  # that of autogaze.vit
    named = set().union(*map(imported_by, codes))
    assert len(reference) == len(set(reference))
    assert not {name for name in named if name not in known and not name.startswith(tuple(f"{at}." for at in known))}


def test_the_readmes_table_of_speed_is_what_was_measured() -> None:
    speed = pytest.importorskip("benchmarks.speed")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"figures:speed - from (\S+)", readme)
    clips = json.loads((ROOT / source).read_text())["clips"]
    measured = {(c["batch"], c["gazing_ratio"]): c["ms_per_clip"] for c in clips if c["dtype"] == "bfloat16"}
    rows = re.findall(r"^\| (\d+), ([\d.]+) \| \*\*([\d.]+)\*\* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.M)
    assert len(rows) > 5
    for batch, ratio, *cells in rows:
        case = int(batch), float(ratio)
        single, half = speed.PUBLISHED_MS[case]
        wanted = (measured[case], half, single, min(half, single) / measured[case])
        assert all(abs(float(cell) / value - 1) < 0.03 for cell, value in zip(cells, wanted, strict=True)), (
            case,
            wanted,
        )
