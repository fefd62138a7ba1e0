"""`autogaze export` refuses what it cannot do in one clear line, before any work, and leaves nothing half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.cli.main import main  # noqa: E402
from autogaze.export.onnx import check_target  # noqa: E402


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of the command; it must be one line, with exit code 2."""
    try:
        assert main(["export", *arguments]) == 2
    except SystemExit as error:  # of argparse, which prints its usage first
        assert error.code == 2
        return capsys.readouterr().err.splitlines()[-1]
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gazing-ratio", "0"], "gazing_ratio must be in (0, 1], got 0.0"),
        (["--gazing-ratio", "1.01"], "gazing_ratio must be in (0, 1], got 1.01"),
        (["--gazing-ratio", "nan"], "gazing_ratio must be in (0, 1], got nan"),
        (["--batch", "4:2"], "batch must be N or N:M with 1 <= N <= M, got 4:2"),
        (["--batch", "0"], "batch must be N or N:M with 1 <= N <= M, got 0:0"),
        (["--batch", "two"], "expected N or N:M, got 'two'"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--uint8", "0x10"], "input size must be positive pixels, got (0, 10)"),
        (["--uint8", "720"], "expected HEIGHTxWIDTH in pixels, got '720'"),
        (["--frames", "4"], "frames is a clip's length; a frame file takes clips of any length"),
        (["--clip", "--frames", "0"], "a clip has 1 to 16 frames, which is what the model remembers, got 0"),
        (["--clip", "--frames", "17"], "a clip has 1 to 16 frames, which is what the model remembers, got 17"),
        (["--scales", "100"], "scales must be some of the model's (32, 64, 112, 224) (pixels), got (100,)"),
        (["--workspace-mib", "64"], "--version-compatible and --hardware go with --trt"),
        (["--triton", "models", "--batch", "4"], "--batch 1:M, M above 1, got 4:4"),
        (["--triton", "models", "--batch", "2:8"], "--batch 1:M, M above 1, got 2:8"),
        (["--triton", "models", "--precision", "bf16"], "serve --precision fp32 or fp16"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_one_line(
    arguments: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused([str(tiny_checkpoint), "--onnx", str(tmp_path / "gaze.onnx"), *arguments], capsys)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autogaze.export.onnx.write_graph", lambda *_: pytest.fail("worked before it looked"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    inside = tmp_path / "file" / "gaze.onnx"
    for path, message in (
        (inside, f"cannot write {inside}: {inside.parent} is not a folder"),
        (tmp_path / "folder.onnx", f"cannot write {tmp_path / 'folder.onnx'}: it is a folder"),
        (tmp_path / "gaze.pt", "expected a file that ends in .onnx"),
    ):
        assert message in refused([str(tiny_checkpoint), "--onnx", str(path)], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.onnx"]


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/temporary/name")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(OSError, match=rf"cannot write {tmp_path / 'gaze.onnx'}: Permission denied"):
        check_target(tmp_path / "gaze.onnx", (".onnx",))


def test_a_write_that_fails_leaves_the_old_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gaze.onnx"
    path.write_bytes(b"the old one")
    save = onnx.save

    def full(graph: object, target: str) -> None:
        if not target.endswith("graph.onnx"):  # the one that is checked is elsewhere
            Path(target).write_bytes(b"half a file")
            raise OSError(28, "No space left on device", target)
        save(graph, target)

    monkeypatch.setattr("onnx.save", full)
    assert "No space left on device" in refused([str(tiny_checkpoint), "--onnx", str(path)], capsys)
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_and_described(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "gaze.onnx"
    arguments = [str(tiny_checkpoint), "--onnx", str(path), "--batch", "1:2", "--triton", str(tmp_path / "models")]
    assert main(["export", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out.splitlines()[-1])
    assert report["path"] == str(path) and report["metadata"]["autogaze.batch"] == "1,2"
    assert report["parity"]["2"]["slots"] > 0
    assert "frame graph, fp32, up to 26 ids a frame" in said.err
    assert (tmp_path / "models" / "autogaze" / "1" / "model.onnx").read_bytes() == path.read_bytes()
