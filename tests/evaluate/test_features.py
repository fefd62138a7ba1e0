"""Judging by features: distances are what they say, disturbances do what they say, and the command writes all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autogaze.cli import card
from autogaze.cli.main import main
from autogaze.evaluate.bootstrap import bootstrap, ratio
from autogaze.evaluate.clips import ClipSet, load_clips
from autogaze.evaluate.disturbances import DISTURBANCES, disturbed, flicker, noise, shake
from autogaze.evaluate.features import PASTED, REBUILT, FeatureEvaluator, Viewer
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.results import Results
from autogaze.pretrain.distance import FeatureDistance
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.selectors import make_selector
from autogaze.vit.load import load_vit
from benchmarks import quality
from tests.evaluate.evaluate_folder import GRID, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to evaluate, with a tiny DINOv2 of random weights in vit/."""
    from transformers import Dinov2Config, Dinov2Model

    root = make_folder(tmp_path_factory.mktemp("features"))
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16)
    Dinov2Model(config).save_pretrained(root / "vit")
    return root


@pytest.fixture(scope="module")
def clips(folder: Path) -> ClipSet:
    return load_clips(folder / "clips", GRID, frames=4)


@pytest.fixture(scope="module")
def viewer(folder: Path) -> Viewer:
    return Viewer("tiny", FeatureDistance(load_vit(folder / "vit")))


def test_distances_are_one_minus_cosine_of_both_pictures(folder: Path, clips: ClipSet, viewer: Viewer) -> None:
    reconstructor = Reconstructor.from_pretrained(folder / "judge").eval()
    judge = FeatureEvaluator([viewer], clips, clips, reconstructor=reconstructor, batch=2)
    select = make_selector("difference", GRID)
    gazes = {part.start: select(video, 0.2) for part, video in clips.batches(2, "cpu")}
    scores = {one.picture: one for one in judge.score("difference", "selector", 0.2, gazes)}
    _, video = next(clips.batches(3, "cpu"))
    gaze = select(video, 0.2)
    with torch.no_grad():
        pictures = {PASTED: paste(video, gaze), REBUILT: reconstructor(video, gaze).frames}
        for name, picture in pictures.items():
            seen, true = (viewer.distance.vit.tokens(one.flatten(0, 1) / 2 + 0.5) for one in (picture, video))
            for k, found in enumerate((scores[name].patch, scores[name].pooled)):
                wanted = 1 - F.cosine_similarity(seen[k], true[k], dim=-1)
                np.testing.assert_allclose(found, wanted.reshape(3, -1).mean(1).numpy(), atol=1e-5)


def test_looking_at_everything_is_no_distance_and_noise_is_some(folder: Path, clips: ClipSet, viewer: Viewer) -> None:
    whole = Evaluator(Reconstructor.from_pretrained(folder / "judge"), clips).everything
    for name, lowest, highest in (("clean", 0.0, 1e-5), ("noise-20", 1e-3, 1.0), ("shake", 0.0, 1e-5)):
        seen = clips if name == "clean" else disturbed(clips, name)
        truth = clips if name == "clean" or DISTURBANCES[name].against_clean else seen
        gazes = {part.start: whole(video) for part, video in seen.batches(3, "cpu")}
        score = FeatureEvaluator([viewer], seen, truth, name, batch=3).score("all", "reference", 1.0, gazes)[0]
        assert lowest - 1e-6 <= score.patch.mean() <= highest, name


def test_disturbances_do_what_they_say() -> None:
    frames = torch.full((2, 3, 40, 40, 3), 128, dtype=torch.uint8)
    frames[:, :, 10:20, 10:20] = 40
    draws = torch.Generator().manual_seed(1)
    assert noise(frames, 20, draws).float().sub(frames).std() == pytest.approx(20, rel=0.03)
    bright = flicker(frames, 0.08, draws)
    factors = bright[..., 0, 0, 0].float() / 128
    assert 0.9 < factors.min() < factors.max() < 1.1 and factors.unique().numel() > 2
    assert (40 * factors - bright[:, :, 15, 15, 0].float()).abs().max() <= 1
    moved = shake(frames, 2, draws)
    rows, columns = ((moved[..., 0] == 40).any(axis) for axis in (-1, -2))
    for axis in (rows, columns):
        starts = axis.float().argmax(-1)
        assert starts.min() >= 8 and starts.max() <= 12 and starts.unique().numel() > 1
        assert torch.equal(axis.sum(-1), torch.full((2, 3), 10))


def test_disturbances_are_the_same_for_a_seed(clips: ClipSet) -> None:
    first, again, other = (disturbed(clips, "noise-8", seed).frames for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="no disturbance snow"):
        disturbed(clips, "snow")


def test_a_second_compression_changes_pixels_a_little(clips: ClipSet) -> None:
    pytest.importorskip("av")
    again = disturbed(clips, "h264").frames
    error = (again.float() - clips.frames.float()).abs().mean()
    assert again.shape == clips.frames.shape and 0.2 < error < 15


def test_the_command_judges_by_features(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--data", str(folder / "clips"), "--reconstructor", str(folder / "judge"), "--frames", "4"]
    words += ["--checkpoint", f"a={folder / 'model'}", "--checkpoint", f"b={folder / 'other'}", "--device", "cpu"]
    words += ["--against", "random,difference,feature-oracle", "--features", f"tiny={folder / 'vit'}"]
    words += ["--ratios", "0.1,0.2", "--oracle-ratios", "0.2", "--disturb", "noise-20,flicker"]
    words += ["--disturbed-ratios", "0.2", "--json", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["features"]
    results = Results.load(tmp_path / "results.json")
    assert len(printed) == len(results.features) == 2 * 2 * (2 * 4 + 1) // 2 + 2 * (4 + 1)
    at = {(row.disturbance, row.method, row.gazing_ratio, row.picture): row for row in results.features}
    best, drawn = (at["clean", name, 0.2, "pasted"].patch.value for name in ("feature-oracle", "random"))
    assert best < drawn
    assert at["flicker", "all patches", 1.0, "pasted"].patch.value == pytest.approx(0, abs=1e-5)
    assert at["noise-20", "all patches", 1.0, "pasted"].patch.value > 0
    ours, theirs = (np.array(at["clean", name, 0.1, "pasted"].clip_patch) for name in ("b", "difference"))
    wanted = bootstrap([ours, theirs], [clip.source for clip in results.clips], ratio)
    found = [
        row.interval
        for row in results.feature_comparisons
        if (row.disturbance, row.figure, row.method, row.against, row.gazing_ratio, row.kind)
        == ("clean", "over", "b", "difference", 0.1, "all")
    ]
    assert len(found) == 1 and found[0].high == pytest.approx(wanted.high, rel=1e-4)
    text = (tmp_path / "tables.md").read_text()
    assert "tiny: 1 - cosine of patch tokens (pooled feature) of the pasted picture" in text
    assert "noise-20 0.2" in text and "b minus a" in text
    assert (tmp_path / "features.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "feature-oracle"], "needs --features"),
        (["--features", "no-such-vit"], "no ViT 'no-such-vit'"),
        (["--features", "x=a", "--features", "x=b"], "every ViT needs its own name"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    base = ["evaluate", "--data", str(folder / "clips"), "--reconstructor", str(folder / "judge")]
    assert main([*base, "--checkpoint", str(folder / "model"), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_quality_benchmark_has_goals_for_features(folder: Path) -> None:
    words = ["--data", str(folder), "--split", "clips", "--reconstructor", str(folder / "judge"), "--frames", "4"]
    words += ["--checkpoint", f"a={folder / 'model'}", "--checkpoint", f"b={folder / 'other'}", "--device", "cpu"]
    words += ["--against", "random,difference", "--features", f"tiny={folder / 'vit'}", "--disturb", "noise-20"]
    assert quality.main([*words, "--no-time", "--out", str(folder / "out.json")]) == 0
    goals = {goal["name"]: goal for goal in json.loads((folder / "out.json").read_text())["goals"]}
    assert goals["tiny, noise-20: distance / difference's at 0.05"]["wanted"] == "<= 0.52"
    assert goals["tiny: distance / a's at 0.1, upper end of 95 %"]["value"] > 0
    assert (folder / "out-features.png").is_file()
    made = card.make_card(folder / "out.json", str(folder / "other")).text()
    assert "tiny: patch tokens, compared" in made and "what ViTs see of the pasted picture" in made
