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
import torch

from autogaze.cli import main as cli
from autogaze.media.scenes import render_scene
from autogaze.media.video import write_video
from tests.browser import needs_browser, open_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LONG = ("train", "adapt", "demo")  # verbs whose words are checked without running them: minutes, or a server
SETTING_UP = ("make ", "pip install ", "docker ")  # the environment that this test runs in
VIDEO_LLM, ADAPTED_VIT = "Qwen/Qwen3-VL-2B-Instruct", "timm/vit_small_patch14_dinov2"  # nothing is downloaded in a test


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of a page, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


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


class Page:
    """Files and names that the blocks of a page share while they run, one after another."""

    def __init__(self, path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.workplace, self.monkeypatch = path, workplace, monkeypatch
        self.text = path.read_text(encoding="utf-8")
        self.names: dict[str, object] = {
            "CHECKPOINT": "autogaze-base",
            "torch": torch,
            "frames": render_scene(0, 2, (72, 96)),
            "frame": torch.zeros(1, 3, 224, 224),
            "video": torch.zeros(1, 5, 3, 224, 224),
            "video_378": torch.zeros(1, 2, 3, 224, 224),
        }
        if "autogaze evaluate" in self.text or "autogaze calibrate" in self.text:
            self.make_reconstructor()
        if "timm.create_model" in self.text:
            timm = pytest.importorskip("timm")
            original = timm.create_model
            monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: original(name))

    def run(self, language: str, code: str) -> None:
        getattr(self, f"run_{language}")(code)

    def run_bash(self, code: str) -> None:
        for line in code.splitlines():
            if line.startswith("autogaze "):
                verb, *words = shlex.split(line.split("  #")[0])[1:]
                if verb in LONG or "--trt" in words:
                    cli._parser([verb]).parse_args([verb, *words])
                else:
                    assert cli.main([verb, *words]) == 0, line
            else:
                assert line.startswith(SETTING_UP) or not line, f"{line!r} is not checked by any test"

    def run_console(self, code: str) -> None:
        """Commands of other machines and tools: their words are checked in `test_words_of_docs.py`."""
        assert all(line.startswith(("$ ", "    ")) for line in code.splitlines()), code

    def run_python(self, code: str) -> None:
        exec(compile(self.at_hand(code), str(self.path), "exec"), self.names)

    def run_yaml(self, code: str) -> None:
        from autogaze.training.recipes import load_recipes

        (self.workplace / "recipe.yaml").write_text(code)
        assert load_recipes("tiny", Path("recipe.yaml"), ())

    def run_cpp(self, code: str) -> None:
        compiler = shutil.which("g++")
        if compiler is None:
            return
        source = self.workplace / "block.cpp"
        source.write_text(
            f'#include "autogaze_trt.hpp"\nvoid block(void* device_pointer, void* cuda_stream) {{\n{code}}}\n'
        )
        include = ROOT / "autogaze" / "export" / "cpp" / "include"
        done = subprocess.run(
            [compiler, "-std=c++17", "-fsyntax-only", f"-I{include}", str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def run_bibtex(self, code: str) -> None:
        assert code.startswith("@") and code.count("{") == code.count("}")

    def make_reconstructor(self) -> None:
        """A judge beside the shipped weights, where `autogaze evaluate` looks for one."""
        pytest.importorskip("matplotlib")
        from autogaze.evaluate import evaluation
        from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig

        folder = self.workplace / "shipped" / evaluation.SHIPPED_RECONSTRUCTOR
        Reconstructor(ReconstructorConfig.tiny()).save_pretrained(folder)
        self.monkeypatch.setattr(evaluation, "SHIPPED", self.workplace / "shipped")

    def at_hand(self, code: str) -> str:
        """The code with tiny models with random weights in the place of those that it would download."""
        if VIDEO_LLM in code:
            pytest.importorskip("transformers", minversion="5.23")
            from tests.mllm.mllm_models import BY_NAME, built

            for part in built(BY_NAME["Qwen3-VL"]):
                part.save_pretrained("llm")
            code = code.replace(VIDEO_LLM, "llm")
        if ADAPTED_VIT in code:
            transformers = pytest.importorskip("transformers")
            from autogaze import GazedViT
            from autogaze.vit.adapter import AdapterConfig, install, save_adapter

            size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 196}
            transformers.Dinov2Model(transformers.Dinov2Config(**size, patch_size=14)).save_pretrained("vit")
            adapted = GazedViT.from_pretrained("vit", attention="memory", size=196)
            install(adapted, AdapterConfig("memory", 4, "none"))
            Path("adapted").mkdir()
            save_adapter(adapted, "adapted/adapter.safetensors")
            code = code.replace(ADAPTED_VIT, "vit")
        return code


@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page)], ids=lambda path: path.name)
def test_a_page_runs_from_top_to_bottom(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(path, workplace, monkeypatch)
    for language, code in blocks(path):
        page.run(language, code)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_block_says_its_language(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(path))
    indented = re.search(r"(?:^|\n)\n(    (?![-*\d]).+)", text)
    assert indented is None or path.name == "log.md", f"a block without a language: {indented and indented[1]}"


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
