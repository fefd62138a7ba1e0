"""Every code block of README and documentation runs; the site builds without a warning and loads in a browser."""

from __future__ import annotations

import http.server
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from autogaze.cli import main as cli
from autogaze.media.scenes import render_scene
from autogaze.media.video import write_video
from tests.browser import needs_browser, open_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LONG = ("train", "adapt", "demo")  # verbs whose words are checked without running them: minutes, or a server
SETTING_UP = ("make ", "pip install ", "docker ")  # the environment that this test runs in


def blocks(language: str) -> list[tuple[Path, list[str]]]:
    found = [(page, [code for name, code in BLOCK.findall(page.read_text()) if name == language]) for page in PAGES]
    return [(page, codes) for page, codes in found if codes]


@pytest.fixture
def workplace(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: a video, a folder of videos, a run, shipped weights."""
    write_video(tmp_path / "clip.mp4", render_scene(2, 5, (72, 96), "object"), 12)
    write_video(tmp_path / "videos" / "a.mp4", render_scene(1, 16, (72, 96), "pan"), 12)
    shutil.copytree(tiny_checkpoint, tmp_path / "run")
    shutil.copytree(tiny_checkpoint, tmp_path / "shipped" / "autogaze-base")
    monkeypatch.setattr("autogaze.checkpoint.SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str) -> None:
    """One command of a page, in this process."""
    verb, *words = shlex.split(line.split("  #")[0])[1:]
    if verb in LONG or "--trt" in words:
        cli._parser([verb]).parse_args([verb, *words])
    else:
        assert cli.main([verb, *words]) == 0, line


@pytest.mark.parametrize("page, codes", [pytest.param(*found, id=found[0].name) for found in blocks("bash")])
def test_commands_run(page: Path, codes: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in "".join(codes).splitlines():
        if line.startswith("autogaze "):
            if line.startswith("autogaze evaluate"):
                pytest.importorskip("matplotlib")
                make_reconstructor(workplace, monkeypatch)
            run_line(line)
        else:
            assert line.startswith(SETTING_UP) or not line, f"{page.name}: {line!r} is not checked by any test"


def make_reconstructor(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge beside the shipped weights, where `autogaze evaluate` looks for one."""
    from autogaze.evaluate import evaluation
    from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

    folder = workplace / "shipped" / evaluation.SHIPPED_RECONSTRUCTOR
    Reconstructor(ReconstructorConfig.tiny()).save_pretrained(folder)
    monkeypatch.setattr(evaluation, "SHIPPED", workplace / "shipped")


@pytest.mark.parametrize("page, codes", [pytest.param(*found, id=found[0].name) for found in blocks("python")])
def test_code_runs(page: Path, codes: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: original(name))  # no download in a test
    (workplace / "looked").mkdir()
    if "gaze.npz" in "".join(codes):
        assert cli.main(["gaze", "clip.mp4", "--gazing-ratio", "0.1", "--out", "looked"]) == 0
    if "gaze.onnx" in "".join(codes):
        pytest.importorskip("onnxruntime")
        assert cli.main(["export", "autogaze-base", "--onnx", "gaze.onnx", "--gazing-ratio", "0.02"]) == 0
    import torch

    names: dict[str, object] = {
        "CHECKPOINT": "autogaze-base",
        "torch": torch,
        "frames": render_scene(0, 2, (72, 96)),
        "frame": torch.zeros(1, 3, 224, 224),
        "video": torch.zeros(1, 5, 3, 224, 224),
        "video_378": torch.zeros(1, 2, 3, 224, 224),
    }
    for code in codes:
        exec(compile(code, str(page), "exec"), names)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs autogaze[docs]")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert "What gazing is" in text and "fonts.googleapis" not in text


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site on a loopback port."""
    handler = partial(SilentHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@needs_browser
def test_pages_load_in_a_browser_and_fetch_nothing_from_elsewhere(address: str) -> None:
    for name in ("index.html", "quickstart.html", "faq.html", "api/model.html"):
        with open_page(f"{address}/{name}") as page:
            assert page.locator("h1").first.is_visible()
            assert page.evaluate("Array.from(document.images, (i) => i.naturalWidth).every((w) => w > 0)"), name


@needs_browser
def test_pages_fit_a_phone_and_can_be_searched(address: str) -> None:
    with open_page(f"{address}/index.html", width=360, height=740) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with open_page(f"{address}/index.html") as page:
        for _ in range(20):  # typed before the index is there, a search finds nothing and says nothing
            page.fill("input.md-search__input", "")
            page.type("input.md-search__input", "truncated")
            page.wait_for_timeout(1000)
            if page.locator(".md-search-result__link").count():
                break
        assert "FAQ" in page.locator(".md-search-result").inner_text()
