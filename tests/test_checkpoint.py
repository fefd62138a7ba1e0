"""Checkpoints: written whole, read back the same, in the published format, refused with a reason."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze import AutoGaze
from autogaze import checkpoint as checkpoint_module
from autogaze.checkpoint import config_from_published, config_to_published, find
from autogaze.media.preprocess import Preprocessor
from autogaze.model import AutoGazeConfig
from autogaze.network.decoder import RopeConfig
from tests.gaze_models import SMALL, random_video, small_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_what_is_saved_is_what_is_loaded(folder: Path) -> None:
    model, again, video = small_model(), AutoGaze.from_pretrained(folder), random_video()
    assert again.config == model.config and not again.training
    assert torch.equal(again.generate(video, 0.5).ids, model.generate(video, 0.5).ids)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize(
    "config",
    [
        AutoGazeConfig(),
        AutoGazeConfig.tiny(),
        SMALL,
        replace(SMALL, scales=(8, 16, 24), patch_size=8),
        replace(
            SMALL,
            rope=RopeConfig(theta=1e4, scaled=False),
            calibration=((0.1, 0.2), (0.5, 0.6)),
            max_num_frames=8,
            gazing_ratio=0.3,
            task_loss_requirement=None,
            encoder_depth=3,
            temporal_kernel=5,
        ),
    ],
)
def test_every_field_of_a_config_survives_the_published_form(config: AutoGazeConfig) -> None:
    assert config_from_published(json.loads(json.dumps(config_to_published(config)))) == config


def test_the_published_fields_stand_where_published_code_looks_for_them() -> None:
    data = config_to_published(AutoGazeConfig())
    assert data["scales"] == "32+64+112+224" and data["num_vision_tokens_each_frame"] == 265
    gaze = data["gaze_model_config"]
    assert gaze["input_img_size"] == 224 and gaze["connector_config"]["num_tokens"] == 196
    assert gaze["gaze_decoder_config"]["vocab_size"] == 266 and gaze["gaze_decoder_config"]["eos_token_id"] == 265
    assert gaze["gaze_decoder_config"]["rope_scaling"]["rope_type"] == "llama3"


def test_weights_are_named_as_published(folder: Path) -> None:
    names = load_file(folder / "model.safetensors").keys()
    assert {
        "gazing_model.connector.pos_embed",
        "gazing_model.gaze_decoder.lm_head.weight",
        "gazing_model.vision_model.temporal_conv.weight",
        "gazing_model.gaze_decoder.model.layers.1.mlp.up_proj.weight",
    } <= names


def test_preprocessing_is_kept_and_its_absence_is_no_error(folder: Path) -> None:
    model = small_model()
    model.preprocessor = Preprocessor(size=64, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), offset=False)
    model.save_pretrained(folder)
    assert AutoGaze.from_pretrained(folder).preprocessor == model.preprocessor
    (folder / "preprocessor_config.json").unlink()
    assert AutoGaze.from_pretrained(folder).preprocessor == Preprocessor(size=(64, 64))


def test_bfloat16_on_disk_is_float32_in_memory(folder: Path) -> None:
    small_model().save_pretrained(folder, torch.bfloat16)
    assert load_file(folder / "model.safetensors")["gazing_model.connector.pos_embed"].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in AutoGaze.from_pretrained(folder).parameters()} == {torch.float32}


def test_saving_again_replaces_the_model_and_keeps_what_else_is_there(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    other = small_model(seed=1)
    other.save_pretrained(folder)
    assert torch.equal(AutoGaze.from_pretrained(folder).connector.pos_embed, other.connector.pos_embed)
    assert (folder / "README.md").read_text() == "a card"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing temporary is left


def test_a_save_that_fails_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        small_model(seed=1).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_run_is_loaded_by_its_model_folder(folder: Path) -> None:
    assert find(folder.parent) == folder


def test_shipped_weights_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "SHIPPED", folder.parent)
    assert find("model") == folder
    with pytest.raises(FileNotFoundError, match=r"shipped weights \(model\)"):
        find("autogaze-huge")


def test_nothing_there_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder, nor shipped weights"):
        find("no-such-model")
    with pytest.raises(FileNotFoundError, match="expected config.json and model.safetensors"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        find(tmp_path / "missing" / "folder")


def test_a_hub_id_without_the_hub_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'autogaze\[hub\]'"):
        find("owner/name")


def test_a_damaged_weight_file_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        AutoGaze.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_config_is_named(folder: Path, text: str, name: str) -> None:
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name} (is not JSON|must hold one JSON object)"):
        AutoGaze.from_pretrained(folder)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    bigger = small_model(num_hidden_layers=3)
    bigger.save_pretrained(folder.parent / "bigger")
    save_file(tensors, folder.parent / "bigger" / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its config.json: missing \['gaze_decoder.model.layers.2"):
        AutoGaze.from_pretrained(folder.parent / "bigger")
    save_file(tensors | {"gazing_model.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        AutoGaze.from_pretrained(folder)
    save_file(tensors | {"gazing_model.connector.pos_embed": torch.zeros(1, 32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"of another shape \['connector.pos_embed'\]"):
        AutoGaze.from_pretrained(folder)


def test_a_config_of_something_else_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="not the config of an AutoGaze model: it lacks 'gaze_model_config'"):
        AutoGaze.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("gaze_decoder_config", "num_key_value_heads", 1),
        ("gaze_decoder_config", "hidden_act", "gelu"),
        ("vision_model_config", "out_dim", 16),
        ("vision_model_config", "temporal_patch_size", 2),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(part: str, name: str, value: Any) -> None:
    data = config_to_published(SMALL)
    data["gaze_model_config"][part][name] = value
    with pytest.raises(ValueError, match=f"describes another architecture: {name} is {value}, this model needs"):
        config_from_published(data)


def test_a_config_with_a_part_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not the config of an AutoGaze model"):
        config_from_published(config_to_published(SMALL) | {"gaze_model_config": None})


def test_keys_that_are_not_ours_are_left_alone(folder: Path) -> None:
    edit(folder / "config.json", {"use_flash_attn": False, "transformers_version": "4.51.3"})
    assert AutoGaze.from_pretrained(folder).config == SMALL


def test_newer_published_configs_name_rope_differently() -> None:
    data = config_to_published(SMALL)
    decoder = data["gaze_model_config"]["gaze_decoder_config"]
    decoder["rope_parameters"] = decoder.pop("rope_scaling") | {"rope_theta": decoder.pop("rope_theta")}
    assert config_from_published(data) == SMALL
