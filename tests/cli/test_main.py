"""The command line: lazy verbs, help for each, one line for a mistake."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import autogaze
from autogaze.cli.main import VERBS, main
from autogaze.media.scenes import render_scene
from autogaze.media.video import write_video


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"autogaze {verb}" in capsys.readouterr().out


def test_help_lists_the_verbs_without_importing_any() -> None:
    code = (
        "import sys\nfrom autogaze.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('autogaze.') and m != 'autogaze.cli.main'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(verb in done.stdout for verb in VERBS)
    loaded = done.stdout.splitlines()[-1]
    assert "command" not in loaded and "pretrain" not in loaded and "export" not in loaded


@pytest.mark.parametrize("words", [[], ["dance"], ["gaze"], ["gaze", "x.mp4", "--gazing-ratio", "much"]])
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "usage: autogaze" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gaze", "x.mp4", "--out", ""], "the word after --out is empty"),
        (["gaze", ""], "the word after gaze is empty"),
        (["train", "--data=", "--out", "run"], "--data= is empty"),
    ],
)
def test_an_empty_word_is_not_the_present_folder(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2 and message in capsys.readouterr().err


def test_settings_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "workers=1", "--out", "run", "--json", "max_minute=3", "--preset", "tiny"]
    assert main(words) == 2 and "unknown key 'max_minute' (did you mean max_minutes?)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*words, "--bogus", "x"])
    assert stop.value.code == 2 and "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_the_verbs_modules_exist() -> None:
    for module, _ in VERBS.values():
        assert importlib.util.find_spec(module), module


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out[0].isdigit()


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "autogaze", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == autogaze.__version__


def test_a_pipe_that_closes_is_no_crash(tiny_checkpoint: object) -> None:
    command = f"{sys.executable} -m autogaze.cli.main info {tiny_checkpoint} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [
    ("evaluate", "--data", "."),
    ("gallery", "."),
    ("gaze", "no.mp4"),
    ("train",),
    ("adapt", "--vit", "no"),
])  # fmt: skip
def test_an_output_that_is_a_file_is_refused_first(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken\n").touch()
    video = tmp_path / "no.mp4"
    write_video(video, render_scene(0, 1, (32, 32)), 25)
    named = [str(video) if word == "no.mp4" else word for word in words]
    assert main([*named, "--out", str(tmp_path / "taken\n")]) == 2
    assert "exists and is not a folder" in capsys.readouterr().err


def test_a_batch_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", str(tmp_path), "--batch", "0"]) == 2
    assert capsys.readouterr().err == "autogaze: batch must be positive, got 0\n"


def test_names_are_printed_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "autogaze-base", "--data", str(tmp_path / "no\nfolder")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
