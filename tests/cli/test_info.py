"""`autogaze info` names what it is given, or says that it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autogaze.cli.info import describe
from autogaze.cli.main import main


def test_a_checkpoint_is_described(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "checkpoint" and facts["scales"] == [32, 64, 112, 224] and facts["hidden_size"] == 48
    assert main(["info", str(tiny_checkpoint)]) == 0
    assert "patches per frame" in capsys.readouterr().out


def test_an_onnx_file_is_described(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"gazing_ratio": "0.1"})
    onnx.save(model, tmp_path / "g.onnx")
    facts = describe(str(tmp_path / "g.onnx"))
    assert facts["inputs"] == {"x": ["batch", 3]} and facts["nodes"] == 1 and facts["metadata_gazing_ratio"] == "0.1"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.onnx", None, "no such ONNX"),
        ("b.onnx", b"\xff\xffnoise", "not an ONNX"),
        ("c.engine", None, "no such engine"),
        ("d.txt", b"hi", "no known kind"),
        ("nowhere", None, "no checkpoint"),
    ],
)
def test_what_it_cannot_describe_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["info", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
