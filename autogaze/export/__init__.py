"""One file, one call a frame: ONNX and TensorRT exports of AutoGaze, and runners for them.

`export_onnx` and `export_tensorrt` write files that were checked against PyTorch; `Engine.load` runs them with the
interface of `AutoGaze`. `docs/formats.md` names every input, output and rule. Needs the extra `export`.
"""

from __future__ import annotations

from autogaze.export.metadata import FormatError, Metadata
from autogaze.export.runner import Engine

__all__ = ["Engine", "FormatError", "Metadata"]
