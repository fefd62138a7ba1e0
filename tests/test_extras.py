"""A missing extra is named by the command that needs it, with something that can be typed."""

from __future__ import annotations

import json
import subprocess
import sys

from autogaze.extras import PACKAGES, explain

WITHOUT = """
import contextlib, importlib.abc, io, json, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from autogaze.cli.main import main

said = {}
for words in json.loads(sys.argv[2]):
    with contextlib.redirect_stderr(io.StringIO()) as lines:
        said[words] = [main(words.split()), lines.getvalue()]
print(json.dumps(said))
"""


def test_every_command_without_extras_names_the_one_it_needs(tmp_path: object) -> None:
    needed = {
        f"train --out {tmp_path}/run": "train",
        "export autogaze-base --onnx a.onnx": "export",
        "evaluate --data .": "train",
        "calibrate autogaze-base --data .": "train",
        "demo --port 0": "demo",
        "info a.onnx": "",
        "info some/repository": "hub",
    }
    missing = ",".join(set(PACKAGES) - {"tqdm"})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, json.dumps(list(needed))], capture_output=True, text=True, check=True
    )
    for words, (code, said) in json.loads(done.stdout.splitlines()[-1]).items():
        extra = needed[words]
        assert code == 2 and len(said.splitlines()) == 1 and said.startswith("autogaze: "), words
        if extra:
            assert f"pip install 'autogaze[{extra}]', or in a clone: pip install -e '.[{extra}]'" in said, words


def test_a_package_that_is_there_but_broken_is_not_called_missing() -> None:
    broken = ImportError("libx.so: cannot open shared object file", name="onnxruntime.capi._pybind")
    assert str(explain(broken, "exporting")) == (
        "exporting cannot be used, since importing onnxruntime fails: libx.so: cannot open shared object file"
    )
    inner = ModuleNotFoundError("No module named 'onnx.gone'", name="onnx.gone")
    assert "fails: No module named 'onnx.gone'" in str(explain(inner, "exporting"))
    other = ModuleNotFoundError("No module named 'socksio'", name="socksio")
    assert str(explain(other, "the demo")) == "the demo needs socksio: pip install socksio"
