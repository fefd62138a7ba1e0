"""report.html: small enough, whole in itself, and its controls do what they say in a real browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.core.gaze_file import GazeFileWriter, VideoGaze
from autogaze.core.grid import PatchGrid
from autogaze.media.scenes import render_scene
from autogaze.media.video import open_writer, probe, read_chunks, write_video
from autogaze.report.break_even import ALIASES, Parts, VitParts
from autogaze.report.page import savings, write_report
from autogaze.report.small_copy import MOST_VIDEO_BYTES
from tests.browser import needs_browser, open_page, wait_until

FRAMES = 20


def random_gaze(frames: int, grid: PatchGrid, ratio: float = 0.1) -> VideoGaze:
    torch.manual_seed(0)
    writer = GazeFileWriter(grid)
    for start in range(0, frames, 100):
        mask = torch.rand(1, min(100, frames - start), grid.patches_per_frame) < ratio
        writer.add(Gaze.from_patch_mask(mask, grid), np.arange(mask.shape[1]) / 10 + start / 10)
    return writer.view()


def summary_of(video: Path, gaze: VideoGaze, name: str | None = None) -> dict[str, Any]:
    info = probe(video)
    return {
        "video": {"name": name or video.name, "width": info.width, "height": info.height, "fps": info.fps},
        "model": {"gazing_ratio": 0.1, "task_loss_requirement": 0.5, "device": "cpu"},
        "frames": len(gaze.counts),
        "patches": len(gaze.ids),
        "ratio": 0.1,
        "seconds": {"gaze": 1.0},
        "counts": [],
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoGaze]:
    folder = tmp_path_factory.mktemp("report")
    write_video(folder / "scene.mp4", render_scene(3, FRAMES, (90, 160), "handheld"), 10)
    gaze = random_gaze(FRAMES, PatchGrid())
    loss = gaze.task_loss.copy()
    loss[:] = np.linspace(0.2, 0.8, len(loss))
    gaze = VideoGaze(gaze.grid, gaze.counts, gaze.ids, loss, gaze.times_s)
    path = folder / "report.html"
    write_report(path, folder / "scene.mp4", gaze, summary_of(folder / "scene.mp4", gaze, "a <b>&{{DATA}} scene"))
    return path, gaze


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_it_asks_for_nothing_from_outside(report: tuple[Path, VideoGaze]) -> None:
    text = report[0].read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text
    assert "a &lt;b&gt;&amp;{{DATA}} scene" in text


def test_every_frame_of_a_short_video_is_shown(report: tuple[Path, VideoGaze]) -> None:
    data, gaze = data_of(report[0]), report[1]
    assert (data["frames"], data["stride"], len(data["times"])) == (FRAMES, 1, FRAMES)
    assert data["loss"] == [round(float(x), 5) for x in gaze.last_loss()]


def test_a_minute_of_1080p_stays_under_15_mb(tmp_path: Path) -> None:
    """The hardest case for a codec: noise. A few frames of it, with the gaze of a whole minute."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 1080, 1920, 3), dtype=np.uint8)
    with open_writer(tmp_path / "v.mp4", 30) as writer:
        for k in range(8):
            writer.write(noise[k % 4])
    grid = PatchGrid(frame_size=(1080, 1920))
    gaze = random_gaze(1800, grid)
    summary = summary_of(tmp_path / "v.mp4", gaze)
    write_report(tmp_path / "report.html", tmp_path / "v.mp4", gaze, summary)
    data = data_of(tmp_path / "report.html")
    clip = re.search(r'type="text/plain">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)
    assert clip
    rest = (tmp_path / "report.html").stat().st_size - len(clip[1])
    shown_of_clip = -(-8 // data["stride"])
    whole_clip = len(clip[1]) / shown_of_clip * data["frames"]
    assert rest + min(whole_clip, MOST_VIDEO_BYTES * 4 / 3) < 15e6


def test_a_clip_that_came_out_too_large_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autogaze.report.small_copy.MOST_VIDEO_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 256, (12, 120, 160, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", noise, 10)
    gaze = random_gaze(12, PatchGrid())
    write_report(tmp_path / "report.html", tmp_path / "noise.mp4", gaze, summary_of(tmp_path / "noise.mp4", gaze))
    found = re.search(r'type="text/plain">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)
    assert found
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(found[1]))
    assert (tmp_path / "clip.mp4").stat().st_size <= 20_000
    assert sum(len(chunk) for chunk in read_chunks(tmp_path / "clip.mp4")) == 12


@pytest.fixture
def page(report: tuple[Path, VideoGaze]) -> Iterator[Any]:
    with open_page(report[0].as_uri()) as page:
        page.wait_for_selector("#screen[data-ready]")
        yield page


def colours(page: Any, x: float, y: float) -> list[int]:
    """RGB of the screen at a place given as shares of its size."""
    script = (
        "([x, y]) => Array.from(screen.getContext('2d', {willReadFrequently: true})"
        ".getImageData(Math.floor(x * screen.width), Math.floor(y * screen.height), 1, 1).data)"
    )
    return page.evaluate(f"({script})([{x}, {y}])")[:3]


def settle(page: Any) -> None:
    wait_until(page, "!clip.seeking")
    page.wait_for_timeout(100)


@needs_browser
def test_stepping_scrubbing_and_keys_move_the_frame(page: Any) -> None:
    assert page.title() == "a <b>&{{DATA}} scene · gaze"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.click("#forward")
    page.click("#back")
    assert page.evaluate("state.frame") == 2
    page.keyboard.press("End")
    assert page.evaluate("[state.frame, Number(scrubber.value)]") == [FRAMES - 1, FRAMES - 1]
    page.keyboard.press("Home")
    page.evaluate("scrubber.value = 7; scrubber.dispatchEvent(new Event('input'))")
    settle(page)
    assert page.evaluate("Math.floor(clip.currentTime * data.fps)") == 7
    assert page.text_content("#place").startswith("frame 7 · 0.70 s")


@needs_browser
def test_playing_runs_to_the_end_and_stops(page: Any) -> None:
    page.evaluate("""() => {
        window.pressed = []
        const play = document.getElementById("play")
        new MutationObserver(() => pressed.push(play.getAttribute("aria-pressed"))).observe(play, {attributes: true})
    }""")  # a loaded machine may play the short clip to its end before a test can look
    page.keyboard.press(" ")
    wait_until(page, "pressed.includes('true')")
    wait_until(page, f"state.frame === {FRAMES - 1}")
    wait_until(page, "document.getElementById('play').getAttribute('aria-pressed') === 'false'")


@needs_browser
def test_the_patches_on_the_screen_are_the_gaze(page: Any, report: tuple[Path, VideoGaze]) -> None:
    gaze = report[1]
    for frame in (0, 5):
        page.evaluate(f"show({frame})")
        for k in range(4):
            shown = page.evaluate(f"chosenOf(data.scales[{k}], {frame})")
            assert shown == np.flatnonzero(np.split(gaze.mask(frame), gaze.grid.offsets[1:])[k]).tolist()


@needs_browser
def test_looked_at_is_dark_where_nothing_was_chosen_and_scales_can_be_switched(
    page: Any, report: tuple[Path, VideoGaze]
) -> None:
    gaze = report[1]
    page.get_by_role("button", name="looked at").click()
    for k in range(3):
        page.keyboard.press(str(k + 1))  # only the finest scale stays
    settle(page)
    fine = gaze.mask(0)[gaze.grid.offsets[3] :].reshape(14, 14)
    for row, column in ((r, c) for r in range(0, 14, 3) for c in range(0, 14, 3)):
        dark = colours(page, (column + 0.5) / 14, (row + 0.5) / 14) == [38, 38, 38]
        assert dark == (not fine[row, column])
    pressed = [b.get_attribute("aria-pressed") for b in page.query_selector_all("#scales button")]
    assert pressed == ["false", "false", "false", "true"]
    page.keyboard.press("v")
    settle(page)
    assert colours(page, 0.5, 0.5) != [38, 38, 38]


@needs_browser
def test_the_reconstruction_is_a_view_of_its_own_and_its_loss_is_plotted(tmp_path: Path) -> None:
    write_video(tmp_path / "scene.mp4", render_scene(3, 20, (90, 160), "static"), 10)
    gaze = random_gaze(20, PatchGrid())
    seen: list[tuple[int, int]] = []

    def rebuild(frames: np.ndarray, part: Gaze) -> tuple[np.ndarray, np.ndarray]:
        """Green pictures; the loss is the share of patches looked at, so that it names its frame."""
        seen.append((len(frames), part.ids.shape[1]))
        green = np.zeros((len(frames), 224, 224, 3), np.uint8)
        green[..., 1] = 200
        return green, part.counts[0].numpy() / 265

    path = tmp_path / "report.html"
    write_report(path, tmp_path / "scene.mp4", gaze, summary_of(tmp_path / "scene.mp4", gaze), rebuild)
    assert seen == [(8, 8), (16, 16), (12, 12)]
    assert data_of(path)["true_loss"] == [round(count / 265, 5) for count in gaze.counts.tolist()]
    with open_page(path.as_uri()) as page:
        page.wait_for_selector("#screen[data-ready]")
        page.get_by_role("button", name="reconstruction").click()
        settle(page)
        red, green, blue = colours(page, 0.5, 0.5)
        assert green > 150 and red < 60 and blue < 60
        page.get_by_role("button", name="video", exact=True).click()
        settle(page)
        left, right = colours(page, 0.02, 0.5), colours(page, 0.98, 0.5)
        assert not (left[1] > 150 and left[0] < 60) and not (right[1] > 150 and right[0] < 60)


@needs_browser
def test_measured_savings_are_shown_where_there_are_some(report: tuple[Path, VideoGaze], tmp_path: Path) -> None:
    vit = VitParts(16, 768, 12, 3072, {224: ((1, 2.0), (64, 80.0))}, ((100, 1.0), (10000, 50.0)))
    parts = Parts("a test device", "2026-01-01", {ALIASES["vit-b/16"]: vit}, {0.1: ((1, 3.0),), 0.75: ((1, 9.0),)})
    (row,) = savings(0.1, parts)
    assert row["dense"] > row["encode"] > 0 and savings(0.0, parts) == []
    text = report[0].read_text()
    page_with = tmp_path / "with.html"
    page_with.write_text(re.sub(r'"savings": \[.*?\]', lambda _: f'"savings": {json.dumps([row])}', text, count=1))
    page_without = tmp_path / "without.html"
    page_without.write_text(re.sub(r'"savings": \[.*?\]', '"savings": []', text, count=1))
    with open_page(page_with.as_uri()) as page:
        shown = page.locator("#savings").inner_text()
        assert "a test device" in shown and f"{row['dense']:.1f}" in shown
    with open_page(page_without.as_uri()) as page:
        assert not page.locator("#savings").is_visible()


@needs_browser
def test_a_click_on_a_plot_goes_there(page: Any) -> None:
    box = page.locator("#patches").bounding_box()
    inside = box["width"] - 46
    page.mouse.click(box["x"] + 38 + inside * (12.5 / FRAMES), box["y"] + 60)
    assert page.evaluate("state.frame") == 12


@needs_browser
def test_light_and_dark_follow_the_system_and_the_button(report: tuple[Path, VideoGaze]) -> None:
    with open_page(report[0].as_uri(), dark=True) as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(paper)
        page.click("#theme")
        assert dark == "rgb(20, 23, 26)" and page.evaluate(paper) == "rgb(255, 255, 255)"


@needs_browser
def test_nothing_overflows_a_phone(report: tuple[Path, VideoGaze]) -> None:
    with open_page(report[0].as_uri(), width=360, height=740) as page:
        page.wait_for_selector("#screen[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        heights = page.evaluate("Array.from(document.querySelectorAll('button'), (b) => b.clientHeight)")
        assert min(heights) >= 34
