"""Completions that a shell offers when the tab key is pressed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from autogaze.cli.completion import SHELLS
from autogaze.cli.main import VERBS, main

pytest.importorskip("shtab")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    assert stop.value.code == 0
    return capsys.readouterr().out


def offered(source: str, *words: str) -> set[str]:
    """Completions of the last word, by bash itself."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"{source}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n_shtab_autogaze autogaze '{words[-1]}'\n"
    done = subprocess.run(
        ["bash", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_choices_and_files(
    capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    (open("holiday.mp4", "w")).close()
    source = script("bash", capsys)
    assert set(VERBS) <= offered(source, "autogaze", "")
    assert offered(source, "autogaze", "exp") == {"export"}
    assert {"--gazing-ratio", "--gaze-stride"} <= offered(source, "autogaze", "gaze", "--gaz")
    assert offered(source, "autogaze", "export", "--precision", "") == {"fp32", "fp16", "bf16"}
    assert offered(source, "autogaze", "gaze", "holi") == {"holiday.mp4"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = script(shell, capsys)
    assert all(verb in source for verb in VERBS)


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "fish"])
    assert stop.value.code == 2 and "invalid choice" in capsys.readouterr().err
