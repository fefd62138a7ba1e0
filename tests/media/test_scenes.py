"""Rendered scenes: the same every time, textured, and moving the way their kind says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autogaze.media.scenes import KINDS, main, render_scene
from autogaze.media.video import probe


def changes(scene: np.ndarray) -> np.ndarray:
    """Share of pixels that change from frame to frame."""
    return (np.abs(np.diff(scene.astype(int), axis=0)).max(-1) > 12).mean((1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_textured_pixels(kind: str) -> None:
    scene = render_scene(5, 6, (60, 80), kind)
    assert scene.shape == (6, 60, 80, 3) and scene.dtype == np.uint8
    assert np.array_equal(scene, render_scene(5, 6, (60, 80), kind))
    assert not np.array_equal(scene, render_scene(6, 6, (60, 80), kind))
    assert scene.std((1, 2)).mean() > 8


def test_what_moves_is_what_the_kind_says() -> None:
    def mean_change(kind: str) -> float:
        return float(np.mean([changes(render_scene(seed, 8, (96, 96), kind)).mean() for seed in range(6)]))

    assert mean_change("static") == 0
    assert 0 < mean_change("object") < 0.35
    assert mean_change("handheld") > mean_change("object")
    assert mean_change("pan") > 0.05 and mean_change("zoom") > 0.02 and mean_change("flicker") > 0.2


def test_in_a_harbour_blue_water_glitters_and_what_comes_stays() -> None:
    scene = render_scene(3, 16, (96, 96), "harbour").astype(int)
    moved = np.abs(np.diff(scene, axis=0)).max(-1) > 12  # (15, 96, 96)
    water = moved.mean(0) > 0.2
    red, _, blue = scene[0][water].mean(0)
    assert 0.15 < water.mean() < 0.25 and blue > red + 60
    dry = moved[:, ~water]
    assert 0.02 < dry.any(0).mean() < 0.6 and np.quantile(dry.sum(0), 0.99) <= 3, "a place changes once or twice"


def test_a_cut_changes_nearly_everything_once() -> None:
    change = changes(render_scene(1, 12, (96, 96), "cut"))
    assert (change > 0.7).sum() == 1


def test_one_frame_of_one_pixel_and_a_free_kind() -> None:
    for seed in range(12):
        assert render_scene(seed, 1, (1, 1)).shape == (1, 1, 1, 3)


@pytest.mark.parametrize(
    "bad, message",
    [({"frames": 0}, "at least one frame"), ({"size": (0, 5)}, "at least one"), ({"kind": "dream"}, "kind must be")],
)
def test_impossible_scenes_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_scene(0, **bad)  # type: ignore[arg-type]


def test_the_command_writes_clips_to_train_and_to_validate(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--clips", "5", "--frames", "3", "--height", "32", "--width", "48"]) == 0
    assert len(list(tmp_path.glob("train/*.mp4"))) == 4
    (held_out,) = tmp_path.glob("val/*.mp4")
    assert (probe(held_out).width, probe(held_out).frames) == (48, 3)
    assert main([str(tmp_path / "a"), "--clips", "2", "--frames", "2", "--height", "32", "--kinds", "harbour"]) == 0
    assert {path.name[:8] for path in (tmp_path / "a").rglob("*.mp4")} == {"harbour-"}
