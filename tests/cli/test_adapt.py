"""`autogaze adapt` on a tiny ViT: it learns, goes on, and writes an adapter that works."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("pytorch_lightning")
transformers = pytest.importorskip("transformers")

from autogaze.cli.main import main  # noqa: E402
from autogaze.media.scenes import write_scenes  # noqa: E402
from autogaze.vit import GazedViT  # noqa: E402

SETTINGS = [
    "chooser=difference",
    "validate_clips=2",
    "max_clips=4",
    "photo_share=0",
    "batch_clips=2",
    "accelerator=cpu",
]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a tiny DINOv2 with random weights, 14 x 14 patches."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=4
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clips")
    write_scenes(folder, 6, 8)
    return str(folder)


def test_a_vit_is_adapted_and_a_run_goes_on(
    vit: str, clips: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapt", "--vit", vit, "--data", clips, "--out", str(tmp_path / "run"), "--preset", "tiny", "--json"]
    words += [*SETTINGS, "validate_every=4", "checkpoint_every=4"]
    assert main([*words, "max_steps=4"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    chatty = logging.getLogger("pytorch_lightning.trainer.connectors.checkpoint_connector")
    assert not chatty.isEnabledFor(logging.INFO)  # how Lightning writes its checkpoints
    assert first["steps"] == 4 and Path(first["adapter"]).stat().st_size < 2**20
    assert main([*words, "max_steps=12", "--resume"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["steps"] == 12 and second["best_distance"] <= first["best_distance"]
    adapted = GazedViT.from_pretrained(vit, adapter=first["adapter"])
    assert adapted.attention == "memory" and adapted.adapter is not None and adapted.adapter.scale.any()
    assert adapted.recommended().attention == "memory"
    assert main([*words, "max_steps=4"]) == 2
    assert "holds an adapter already" in capsys.readouterr().err


@pytest.mark.parametrize(("settings", "message"), [
    (["rank=0"], "rank, shares and patience must be positive"),
    (["min_share=0.5"], "need 0 < min_share <= max_share"),
    (["speed=3"], "unknown key 'speed'"),
    (["--attention", "all"], "attention must be one of"),
    (["--preset", "huge"], "preset must be one of tiny, base"),
    (["--size", "64", "chooser=difference"], "chooses among 14 x 14 cells, this ViT has 16 x 16 patches at 64 px"),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(
    vit: str, clips: str, tmp_path: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", "--vit", vit, "--data", clips, "--out", str(tmp_path / "run"), *settings]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("autogaze: ") and message in last
