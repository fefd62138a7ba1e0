"""The demo: survives bad files and two visitors at once, keeps to its limits, works in a real browser."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autogaze.cli.demo import Demo, DemoLimits, build, check_address, largest_requirement
from autogaze.cli.main import main
from autogaze.media.scenes import render_scene
from autogaze.media.video import VideoError, write_video
from autogaze.model import AutoGaze, AutoGazeConfig
from tests.browser import needs_browser, open_page


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "clip.webm"
    write_video(path, render_scene(1, 20, (60, 80), "object"), 10)
    return path


@pytest.fixture(scope="module")
def demo(tiny_checkpoint: Path) -> Demo:
    return Demo(AutoGaze.from_pretrained(tiny_checkpoint), DemoLimits(seconds=5))


def test_an_upload_is_watched_to_its_end(demo: Demo, clip: Path) -> None:
    steps = list(demo.watch(str(clip), 0.1, 0))
    assert len(steps) == 3 and all(picture.ndim == 3 for picture, _ in steps)
    said = steps[-1][1]
    assert "26.0 of 265 patches" in said and "(20 frames)" in said
    assert re.search(r"SO400M/14, 378 px.* ms looking \+ .* ms encoding instead of .* ms \*\*saves [\d.]+ ms\*\*", said)
    assert "costs" in list(demo.watch(str(clip), 1.0, 0))[-1][1]  # looking at everything saves nothing


def test_bad_files_are_refused_and_the_next_visitor_is_served(demo: Demo, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "cut.webm").write_bytes(clip.read_bytes()[:-500])
    for bad, word in ((None, "choose"), (tmp_path / "noise.mp4", "not a video"), (tmp_path / "cut.webm", "truncated")):
        with pytest.raises(VideoError, match=word):
            list(demo.watch(None if bad is None else str(bad), 0.1, 0))
    assert list(demo.watch(str(clip), 0.1, 0))


def test_long_and_large_videos_are_refused(demo: Demo, tmp_path: Path) -> None:
    write_video(tmp_path / "long.webm", np.zeros((60, 16, 16, 3), np.uint8), 10)
    with pytest.raises(VideoError, match="at most 5 s"):
        list(demo.watch(str(tmp_path / "long.webm"), 0.1, 0))
    small = Demo(demo.model, DemoLimits(pixels=100))
    with pytest.raises(VideoError, match="at most 100 pixels"):
        list(small.watch(str(tmp_path / "long.webm"), 0.1, 0))


def test_two_visitors_at_once_see_what_each_would_see_alone(demo: Demo, clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.webm"
    write_video(other, render_scene(5, 20, (60, 80), "pan"), 10)
    alone = {path: [picture for picture, _ in demo.watch(str(path), 0.1, 0)] for path in (clip, other)}
    together: dict[Path, list[np.ndarray]] = {}

    def visit(path: Path) -> None:
        together[path] = [picture for picture, _ in demo.watch(str(path), 0.1, 0)]

    visitors = [threading.Thread(target=visit, args=(path,)) for path in (clip, other)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    for path in (clip, other):
        assert all(np.array_equal(a, b) for a, b in zip(alone[path], together[path], strict=True))


def test_the_webcam_remembers_and_starts_anew_with_other_settings(demo: Demo) -> None:
    frames = render_scene(0, 3, (60, 80), "object")
    state = None
    for frame in frames:
        picture, words, state = demo.camera(frame, 0.1, 0, state)
    assert picture is not None and state is not None and state.tally.frames == 3 and "26.0 of 265" in words
    _, _, state = demo.camera(frames[0], 0.2, 0, state)
    assert state is not None and state.tally.frames == 1
    assert demo.camera(None, 0.1, 0, state) == (None, "", None)


PROXIES = {name: "socks5://127.0.0.1:9" for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")}


@contextlib.contextmanager
def served(checkpoint: Path, scratch: Path, host: str, **environment: str) -> Iterator[str]:
    """The address of a demo that runs in another process, once it answers."""
    pytest.importorskip("gradio", reason="needs autogaze[demo]")
    port = check_address(host, 0)
    words = ["demo", "--checkpoint", str(checkpoint), "--host", host, "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "autogaze.cli.main", *words],
        env={**os.environ, "TMPDIR": str(scratch), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 300
    while True:
        try:
            direct.open(address, timeout=5)
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(0.3)
    yield address
    server.terminate()
    _, words_said = server.communicate(timeout=600)
    assert server.returncode == 143 and words_said.splitlines()[-1] == "autogaze: interrupted by SIGTERM", words_said
    assert not list(scratch.glob("autogaze-demo-*")), "what visitors sent is still there"


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of one server for all tests: on IPv6 where the machine has it, whatever proxies are set."""
    try:
        host = "::1"
        check_address(host, 0)
    except ValueError:
        host = "127.0.0.1"
    with served(tiny_checkpoint, tmp_path_factory.mktemp("scratch"), host, **PROXIES) as address:
        yield address


@pytest.mark.slow
def test_the_page_answers_on_ipv6_whatever_proxies_are_set(address: str) -> None:
    if not address.startswith("http://[::1]:"):
        pytest.skip("this machine has no IPv6")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert "gradio" in direct.open(address, timeout=60).read().decode()


def test_an_address_that_cannot_be_listened_on_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, said in (
            (["--port", "99999"], "--port must be in 0..65535, got 99999"),
            (["--port", str(port)], "in use"),
            (["--host", "no such host"], "cannot listen on --host no such host"),
            (["--device", "mps"], "device 'mps' is not supported"),
            (["--device", "cuda:77"], "no device 'cuda:77'"),
        ):
            assert main(["demo", *(words if "--port" in words else [*words, "--port", "0"])]) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert line.startswith("autogaze: ") and said in line


def test_a_missing_gradio_is_told_from_one_that_cannot_be_imported(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'autogaze\[demo\]'.*pip install -e '\.\[demo\]'"):
        build(demo, tmp_path)
    monkeypatch.delitem(sys.modules, "gradio")
    (tmp_path / "gradio.py").write_text("from sys import nothing_like_that")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="fails: cannot import name 'nothing_like_that'"):
        build(demo, tmp_path)


@needs_browser
@pytest.mark.slow
def test_the_page_watches_an_upload_and_reports_a_bad_file(address: str, clip: Path, tmp_path: Path) -> None:
    with open_page(address) as page:
        page.set_input_files("input[type=file]", str(clip))
        page.get_by_role("button", name="Look").click()
        page.get_by_text("(20 frames)").wait_for(timeout=300000)
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(np.random.default_rng(0).bytes(3000))
        page.get_by_role("button", name="Clear").or_(page.get_by_label("Clear")).first.click()
        page.set_input_files("input[type=file]", str(bad))
        page.get_by_role("button", name="Look").click()
        page.get_by_text("bad.mp4 is not a video").first.wait_for(timeout=300000)


@needs_browser
@pytest.mark.slow
def test_the_webcam_is_watched_live(address: str) -> None:
    with open_page(address) as page:
        page.get_by_role("tab", name="Webcam").click()
        page.get_by_text("Click to Access Webcam").click()
        page.get_by_label("capture photo").click()
        page.get_by_text(re.compile(r"\((\d\d+|[3-9]) frames\)")).wait_for(timeout=300000)


def test_it_listens_on_this_machine_only_unless_told() -> None:
    import argparse

    from autogaze.cli.demo import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args([]).host == "127.0.0.1"


def test_the_slider_of_losses_covers_what_the_model_is_calibrated_for() -> None:
    config = AutoGazeConfig.tiny()
    assert largest_requirement(replace(config, calibration=((0.1, 0.08), (0.4, 0.3)))) == 0.4
    assert largest_requirement(replace(config, calibration=())) == 2.0
