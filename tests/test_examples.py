"""The examples run, and stay short."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autogaze import AutoGaze
from autogaze.media.scenes import render_scene
from autogaze.media.video import probe, write_video
from autogaze.model import AutoGazeConfig

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoGaze(AutoGazeConfig.tiny()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    write_video(path, render_scene(1, frames=5, size=(96, 128)), fps=8)
    return str(path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_at_most_forty_lines(path: Path) -> None:
    if path.stem == "moving_digits":
        pytest.skip("an experiment, not an example of a call")
    assert len(path.read_text().splitlines()) <= 40


def test_gaze_a_video(video: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _load("gaze_video").main(video, checkpoint, str(tmp_path / "out.mp4"))
    assert probe(tmp_path / "out.mp4").frames == 5
    assert "130 patches of 5 frames, 9.8% of all" in capsys.readouterr().out  # int(0.1 * 265) a frame


def test_encode_with_timm(video: str, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    pooled = _load("encode_timm").main(video, checkpoint, "vit_tiny_patch16_224", pretrained=False)
    assert pooled.shape == (1, 5, 192) and pooled.isfinite().all()
    assert "130 patches encoded instead of 980" in capsys.readouterr().out


def test_encode_with_siglip2(video: str, checkpoint: str) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**size))
    pooled = _load("encode_siglip2").main(video, checkpoint, vit)
    assert pooled.shape == (1, 5, 32) and pooled.isfinite().all()


def test_adapt(video: str, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("pytorch_lightning")
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 4}
    transformers.Dinov2Model(transformers.Dinov2Config(**size)).save_pretrained(tmp_path / "vit")
    write_video(tmp_path / "videos" / "scene.mp4", render_scene(1, frames=16, size=(96, 128)), fps=8)
    example, load = _load("adapt"), AutoGaze.from_pretrained
    monkeypatch.setattr(example.AutoGaze, "from_pretrained", lambda name, **more: load(checkpoint))
    settings = ("max_steps=2", "validate_clips=1", "chooser=difference", "accelerator=cpu")
    pooled = example.main(
        str(tmp_path / "vit"), str(tmp_path / "videos"), str(tmp_path / "run"), *settings, preset="tiny"
    )
    assert pooled.shape == (1, 16, 32) and pooled.isfinite().all()


def test_ask_a_video_llm(video: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", minversion="5.23")
    from tests.mllm.mllm_models import BY_NAME, built

    for part in built(BY_NAME["Qwen3-VL"]):
        part.save_pretrained(tmp_path)
    assert isinstance(_load("video_llm").main(video, "what happens", str(tmp_path), checkpoint, tokens=3, fps=8), str)
    kept, _, dense = capsys.readouterr().out.splitlines()[0].partition(" visual tokens instead of ")
    assert 0 < int(kept) < int(dense)


def test_stream_a_camera(video: str, checkpoint: str) -> None:
    assert _load("stream_camera").main(video, checkpoint) == 5
    with pytest.raises(SystemExit, match="cannot open"):
        _load("stream_camera").main("no-such-file.mp4", checkpoint)


def test_fine_tune(checkpoint: str) -> None:
    pytest.importorskip("timm")
    losses = _load("fine_tune").main(checkpoint, steps=2, name="test_vit", frames=2)
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)


def test_the_gaze_of_moving_digits_finds_the_digit() -> None:
    pytest.importorskip("sklearn")
    digits = _load("moving_digits")
    generator = torch.Generator().manual_seed(0)
    data = digits.Digits.load(test=True)
    ink = digits.Digits(torch.ones_like(data.images), data.labels)  # the same journeys of a white square
    index = torch.arange(32)
    video, labels = data.clips(index, generator)
    squares, _ = ink.clips(index, torch.Generator().manual_seed(0))
    assert video.shape == (32, 3, 3, 32, 32) and video.abs().max() <= 1 and torch.equal(labels, data.labels[:32])
    side = digits.GRID.sides[-1]
    there = (squares[:, :, 0].unfold(2, 4, 4).unfold(3, 4, 4) == 1).flatten(-2).all(-1).flatten(2)  # digit's patches
    found = {}
    for way in ("gazed", "random"):
        gaze = digits.WAYS[way](video, digits.RATIO, generator=generator)
        assert (gaze.counts == 12).all() and there.shape[-1] == side[0] * side[1]
        found[way] = float(gaze.mask(-1)[there].float().mean())
    assert found["gazed"] > 0.75 and found["random"] < 0.3


@pytest.mark.slow
def test_a_vit_learns_moving_digits_from_gazed_patches_as_well_as_from_all() -> None:
    pytest.importorskip("sklearn")
    train_and_test = _load("moving_digits").train_and_test
    accuracy = {way: train_and_test(way, steps=70, seed=0).accuracy for way in ("dense", "gazed", "random")}
    assert accuracy["gazed"] >= accuracy["dense"] - 0.01
    assert accuracy["gazed"] >= accuracy["random"] + 0.05
