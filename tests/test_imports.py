"""Imports run one way, and `import autogaze` needs nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autogaze"
RUNTIME = {"torch", "numpy", "safetensors", "cv2", "PIL"}
# layer: what it may import, besides itself and the layers that these may import
LAYERS = {
    "files": set(),
    "grid": set(),
    "container": set(),
    "gaze": {"grid"},
    "preprocess": {"files"},
    "video": {"container", "files"},
    "scenes": {"video"},
    "report": {"grid"},
    "gaze_file": {"gaze"},
    "patch_embedding": set(),
    "residual_map": {"grid"},
    "encoder": {"gaze", "patch_embedding"},
    "decoder": {"gaze"},
    "model": {"encoder", "decoder", "decoding", "checkpoint", "preprocess", "tiling", "residual_map"},
    "decoding": {"encoder", "decoder", "model"},
    "checkpoint": {"model", "preprocess", "files"},
    "tiling": {"model", "video"},
    "selectors": {"decoding"},
    "vit": {"model"},
    "mllm": {"model"},
    "pretrain": {"model", "tiling", "scenes", "selectors", "report", "files"},
    "rl": {"pretrain"},
    "evaluate": {"pretrain", "selectors", "report", "vit", "gaze_command"},
    "export": {"model", "tiling", "scenes", "files"},
    "gaze_command": {"tiling", "report", "gaze_file", "report_page", "video", "pretrain"},
    "report_page": {"report", "gaze_file", "video", "vit"},
    "info": {"checkpoint", "vit", "export"},
    "demo": {"gaze_command", "scenes"},
}
RUNS_ALL_STAGES = {"stages.py", "command.py", "pipeline.py"}  # of pretrain: `autogaze train` ends with rl
HEAVY = {
    "pytorch_lightning",
    "gymnasium",
    "stable_baselines3",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "timm",
    "transformers",
    "gradio",
    "matplotlib",
    "pyarrow",
    "yaml",
    "tensorboard",
    "triton",
}
HEAVY_HOMES = {
    "pretrain",
    "rl",
    "export",
    "vit",
    "mllm",
    "evaluate",
    "demo",
    "decoding",
    "info",
    "checkpoint",
    "patch_embedding",
}


def modules() -> Iterator[tuple[str, Path]]:
    """(layer, file) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer not in ("__init__", "cli"):
            yield layer, path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it runs when the module is imported) of every import statement."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(scope)
    }
    lazy |= {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.If) and "TYPE_CHECKING" in ast.dump(scope.test)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "autogaze" else [f"autogaze.{alias.name}" for alias in node.names]
            yield from ((name, id(node) not in lazy) for name in names)


def allowed(layer: str) -> set[str]:
    """A layer, and everything below it."""
    found, todo = {layer}, [layer]
    while todo:
        for lower in LAYERS[todo.pop()] - found:
            found.add(lower)
            todo.append(lower)
    return found


@pytest.mark.parametrize("layer", sorted({layer for layer, _ in modules()}))
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    assert layer in LAYERS, f"give autogaze/{layer} its place in LAYERS"
    for own, path in modules():
        for name, _ in imported(path) if own == layer else ():
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == "autogaze" and target in LAYERS and not (target == "rl" and path.name in RUNS_ALL_STAGES):
                assert target in allowed(layer), f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_below_imports_training() -> None:
    for layer in ("model", "decoding", "tiling", "vit", "selectors", "report_page", "export"):
        assert not allowed(layer) & {"pretrain", "rl", "evaluate"}


def test_heavy_packages_stay_in_their_folders() -> None:
    for layer, path in modules():
        for name, _ in imported(path):
            assert name.split(".")[0] not in HEAVY or layer in HEAVY_HOMES, f"{path.relative_to(ROOT)} imports {name}"


def test_runtime_modules_import_only_what_the_package_requires() -> None:
    for layer, path in modules():
        if layer not in HEAVY_HOMES:
            for name, _ in imported(path):
                known = RUNTIME | {"autogaze", "__future__"} | sys.stdlib_module_names
                assert name.split(".")[0] in known, f"{path.name} imports {name}"


def test_import_autogaze_pulls_nothing_heavy() -> None:
    code = (
        "import sys, autogaze, autogaze.cli.gaze, autogaze.pretrain.reconstructor.network; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_links_at_the_root_lead_into_the_package() -> None:
    for name in ("pretrain", "rl", "export"):
        assert (ROOT / name).resolve() == (PACKAGE / name).resolve()
