"""Recipes: presets load, precedence holds, and every mistake is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from autogaze.training.recipes import PRESETS, RECIPES, STAGES, load_recipes, preset_file, read_yaml


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_recipe_of_every_stage(preset: str) -> None:
    recipes = load_recipes(preset)
    assert all(type(getattr(recipes, stage)) is RECIPES[stage] for stage in STAGES)
    assert all(preset_file(stage, preset).is_file() for stage in STAGES)


def test_overrides_beat_the_file_and_the_file_beats_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rl: {group_size: 5, discount: 0.5}\npretrain: {learning_rate: 1e-4}\n")
    recipes = load_recipes("tiny", file, ["rl.group_size=7", "max_minutes=2.5"])
    assert (recipes.rl.group_size, recipes.rl.discount) == (7, 0.5)
    assert recipes.pretrain.learning_rate == 1e-4
    assert recipes.reconstructor.max_minutes == recipes.rl.max_minutes == 2.5


def test_a_flat_file_describes_the_one_stage_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "rl.yaml"
    file.write_text("group_size: 5\n")
    assert load_recipes("tiny", file, stages=("rl",)).rl.group_size == 5
    with pytest.raises(ValueError, match="--stage"):
        load_recipes("tiny", file)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("group_sise=3", "did you mean group_size"),
        ("rl.nothing=3", "unknown key 'nothing'"),
        ("sleep.group_size=3", "no stage 'sleep'"),
        ("group_size", "key=value"),
        ("group_size=many", "group_size must be int, got 'many'"),
        ("group_size=1", "at least 2, got 1"),
        ("rl.max_steps=0", "max_steps must be positive"),
        ("calibration_clips=-1", "calibration_clips must not be negative"),
        ("precision=fp4", "precision must be one of"),
        ("biased=3", "biased must be bool"),
    ],
)
def test_mistakes_are_refused_by_name(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipes("tiny", overrides=[setting])


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="key: value"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "odd.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match="not YAML"):
        read_yaml(tmp_path / "odd.yaml")
    (tmp_path / "section.yaml").write_text("rll: {group_size: 3}\n")
    with pytest.raises(ValueError, match="'rll' is not a section"):
        load_recipes("tiny", tmp_path / "section.yaml")
