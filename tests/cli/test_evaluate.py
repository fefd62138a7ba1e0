"""`autogaze evaluate` and `autogaze gallery` end to end, at a tiny size on rendered scenes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.cli import gallery
from autogaze.cli.main import main
from autogaze.evaluate.clips import load_clips, pick_frames
from autogaze.evaluate.evaluation import Plan
from autogaze.evaluate.measurement import Evaluator
from autogaze.evaluate.methods import model_method, oracle_method, parse_label, selector_method
from autogaze.evaluate.requirement import COMMON, DEFAULT, OWN, measure_requirement
from autogaze.evaluate.results import Results
from autogaze.evaluate.table import markdown
from autogaze.model import AutoGazeConfig
from autogaze.pretrain.reconstructor.network import Reconstructor
from tests.evaluate.evaluate_folder import GRID, SCALES, TINY, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def evaluator(folder: Path) -> Evaluator:
    reconstructor = Reconstructor.from_pretrained(folder / "judge")
    return Evaluator(reconstructor, load_clips(folder / "clips", GRID, frames=4), batch=2)


def test_evaluate_leaves_results_tables_and_a_plot(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            "evaluate",
            "--data",
            str(folder / "clips"),
            "--checkpoint",
            f"net={folder / 'model'}",
            "--reconstructor",
            str(folder / "judge"),
            "--against",
            "random,difference,untrained,oracle",
            "--ratios",
            "0.05,0.2,0.5",
            "--oracle-ratios",
            "0.2",
            "--requirement",
            "--frames",
            "4",
            "--out",
            str(tmp_path),
            "--device",
            "cpu",
            "--json",
        ]
    )
    captured = capsys.readouterr()
    assert code == 0 and "skipped broken.mp4" in captured.err
    printed = json.loads(captured.out.strip().splitlines()[-1])
    assert printed["clips"] == 3 and len(printed["rows"]) == 4 * 3 + 1
    results = Results.load(tmp_path / "results.json")
    assert results.methods() == ["random", "difference", "untrained", "net", "oracle"]
    assert results.protocol.sources == 2 and results.protocol.skipped == ("broken.mp4",)
    assert {row.kind for row in results.requirements} == {"all", "object", "pan", "static"}
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    text = (tmp_path / "tables.md").read_text()
    assert text == markdown(results) and "way to the oracle" in text
    loss = {row.method: row.loss.value for row in results.rows if row.gazing_ratio == 0.2}
    assert loss["oracle"] <= loss["difference"] < loss["random"]
    assert results.dense_loss < loss["oracle"]


def test_a_fresh_reconstructor_shows_what_paste_shows(evaluator: Evaluator) -> None:
    scores = evaluator.measure(selector_method("coarse", GRID), 0.3).scores
    np.testing.assert_allclose(scores.psnr, scores.paste_psnr, atol=0.5)
    assert scores.spent.tolist() == pytest.approx([6 / 21] * 3)


def test_the_batch_size_does_not_change_a_score(evaluator: Evaluator) -> None:
    other = Evaluator(evaluator.reconstructor, evaluator.clips, batch=3)
    a, b = (one.measure(selector_method("difference", GRID), 0.2).scores for one in (evaluator, other))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)
    np.testing.assert_allclose(a.ssim, b.ssim, rtol=1e-5)


def test_the_oracle_spends_exactly_its_budget(evaluator: Evaluator) -> None:
    _, video = next(evaluator.clips.batches(2, "cpu"))
    gaze = oracle_method(evaluator.reconstructor).choose(video, 0.2, torch.Generator())
    assert gaze.counts.eq(GRID.budget(0.2)).all() and gaze.patch_mask().sum(-1).equal(gaze.counts)


def test_a_model_of_one_scale_is_judged_at_as_many_patches(evaluator: Evaluator) -> None:
    torch.manual_seed(0)
    single = AutoGaze(AutoGazeConfig(scales=(64,), num_multi_token_pred=2, **TINY)).eval()
    _, video = next(evaluator.clips.batches(2, "cpu"))
    gaze = model_method("single", single, GRID).choose(video, 0.3, torch.Generator())
    assert gaze.grid == GRID and gaze.counts.eq(GRID.budget(0.3)).all()
    assert int(gaze.ids[gaze.chosen].min()) >= GRID.offsets[-1]
    own = single.generate(video, gazing_ratio=6.5 / 16)
    assert gaze.mask(-1).equal(own.mask(0))


def test_a_model_of_foreign_scales_is_refused() -> None:
    model = AutoGaze(AutoGazeConfig(scales=(48, 96), **TINY))
    with pytest.raises(ValueError, match="cannot be judged"):
        model_method("x", model, GRID)


def test_requirement_mode_counts_what_was_spent_and_kept(evaluator: Evaluator) -> None:
    class Stops:
        """Looks at everything in clip 0 and at one patch in every other."""

        grid = GRID
        config = AutoGazeConfig(scales=SCALES, task_loss_requirement=2e9)

        def generate(self, video: torch.Tensor, gazing_ratio: float, task_loss_requirement: torch.Tensor) -> Gaze:
            assert task_loss_requirement.shape == video.shape[:2]
            mask = torch.zeros(*video.shape[:2], 21, dtype=torch.bool)
            mask[..., 0] = True
            mask[0] |= task_loss_requirement[0, 0] < 1e9
            return Gaze.from_patch_mask(mask, GRID)

    alone = Evaluator(evaluator.reconstructor, evaluator.clips, batch=3)
    dense = alone.dense_losses()
    rows = {(row.requirement, row.kind): row for row in measure_requirement("s", Stops(), alone, dense)}  # type: ignore[arg-type]
    everything, one = rows[OWN, alone.clips.kinds[0]], rows[OWN, alone.clips.kinds[1]]
    assert everything.ratio.value == 1.0 and everything.stopped == 0.0 and everything.kept is None
    assert one.ratio.value == pytest.approx(1 / 21) and one.stopped == 1.0 and one.kept == 0.0
    assert rows[COMMON, "all"].required_loss == pytest.approx(1.1 * float(dense.mean()), rel=1e-5)
    assert rows[COMMON, "all"].ratio_spread > 0.4
    assert rows[DEFAULT, "all"].ratio.value == pytest.approx(1 / 21) and rows[DEFAULT, "all"].kept == 1.0


def test_clips_take_frames_evenly_or_by_stride() -> None:
    assert pick_frames(75, 4, None) == [0, 25, 49, 74]
    assert pick_frames(75, 4, 2) == [0, 2, 4, 6]
    assert pick_frames(3, 4, None) == [0, 1, 2]


def test_kinds_and_sources_come_from_the_manifest(folder: Path) -> None:
    clips = load_clips(folder / "clips", GRID, frames=4, limit=None)
    assert clips.names == ("object.mp4", "pan.mp4", "static.mp4")
    assert clips.kinds == ("object", "pan", "static") and clips.groups == ("source-0", "source-0", "source-1")
    assert load_clips(folder, GRID, frames=4).kinds == clips.kinds
    assert clips.frames.shape == (3, 4, 64, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no folder nowhere"),
        (["--frames", "9"], "holds no readable clip of 9 frames"),
        (["--ratios", "0,0.1"], r"ratios must be in"),
        (["--reconstructor", "nowhere"], "no reconstructor nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    base = {"--data": str(folder / "clips"), "--reconstructor": str(folder / "judge")}
    base |= {"--checkpoint": str(folder / "model")} | dict([arguments])
    assert main(["evaluate", *(word for pair in base.items() for word in pair)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_labels() -> None:
    assert parse_label("ntp=runs/a/model") == ("ntp", "runs/a/model")
    assert parse_label("runs/a/model") == ("a", "runs/a/model")
    assert parse_label("autogaze-base") == ("autogaze-base", "autogaze-base")


def test_a_plan_refuses_ratios_that_are_none() -> None:
    with pytest.raises(ValueError, match="ratios"):
        Plan(ratios=())


def test_the_gallery_draws_every_video_and_a_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / "clips" / name) for name in ("object.mp4", "static.mp4")]
    words += ["--out", str(tmp_path), "--frames", "5", "--gazing-ratio", "0.2", "--stills", "3", "--device", "cpu"]
    assert main(["gallery", *words, "--checkpoint", str(folder / "model"), "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["videos"]
    assert [entry["counts"] for entry in drawn] == [[4] * 5] * 2
    sheet = cv2.imread(str(tmp_path / gallery.SHEET))
    assert sheet.shape[1] == 3 * (gallery.SHEET_PX + 4) and sheet.shape[0] > 2 * gallery.SHEET_PX
    assert {path.name for path in tmp_path.iterdir()} == {"object.png", "static.png", gallery.SHEET}
    assert main(["gallery", *words, "--checkpoint", "difference", "--task-loss-requirement", "0.5"]) == 2
    assert "has no task loss requirement" in capsys.readouterr().err


def test_the_gallery_shows_noise_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    words = ["gallery", str(folder / "clips" / "static.mp4"), "--frames", "4", "--stills", "2", "--device", "cpu"]
    words += ["--checkpoint", "difference"]
    for name, noise in (("clean", "0"), ("noisy", "20")):
        assert main([*words, "--out", str(tmp_path / name), "--noise", noise]) == 0
    clean, noisy = (cv2.imread(str(tmp_path / name / "static.png")).astype(float) for name in ("clean", "noisy"))
    assert clean.shape == noisy.shape and abs(clean - noisy).mean() > 2
    assert main([*words, "--out", str(tmp_path / "x"), "--noise", "-1"]) == 2
