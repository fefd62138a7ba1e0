"""Imports run one way, and `import autogaze` needs nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autogaze.moved import MOVED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autogaze"
RUNTIME = {"torch", "numpy", "safetensors", "cv2", "PIL", "av", "torchcodec", "typing_extensions"}
# room: the rooms that it may import from, no others
LAYERS = {
    "files": set(),
    "device": set(),
    "extras": set(),
    "garbage": set(),
    "moved": set(),
    "core": {"media"},
    "interrupt": {"files"},
    "media": {"extras", "files"},
    "network": {"core", "media"},
    "checkpoint": {"core", "extras", "media", "network"},
    "decoding": {"core", "media", "network"},
    "model": {"checkpoint", "core", "decoding", "network"},
    "selectors": {"core", "decoding", "media"},
    "report": {"core", "files", "media"},
    "vit": {"checkpoint", "core", "decoding", "extras", "files", "media", "model", "selectors"},
    "mllm": {"core", "model"},
    "export": {"core", "decoding", "extras", "files", "media", "model", "network"},
    "training": {"core", "files", "garbage", "interrupt", "media"},
    "pretrain": {"core", "decoding", "extras", "files", "media", "model", "selectors", "training", "vit"},
    "rl": {"core", "files", "model", "pretrain", "training"},
    "stop_rule": {"core", "decoding", "model", "network", "pretrain"},
    "pipeline": {
        *("core", "files", "media", "model", "pretrain", "report", "rl", "selectors", "stop_rule", "training"),
    },
    "evaluate": {
        *("checkpoint", "core", "decoding", "extras", "files", "media", "model", "pretrain", "selectors", "training"),
        "vit",
    },
    "adapt": {"core", "model", "selectors", "training", "vit"},
    "archive": {"core", "decoding", "extras", "files", "media", "model", "training"},
    "batch": {"archive", "core", "decoding", "device", "media", "model"},
    "gaze_video": {"core", "decoding", "files", "media", "model", "pretrain", "report"},
    "cli": {
        *(
            "adapt",
            "archive",
            "checkpoint",
            "core",
            "decoding",
            "device",
            "evaluate",
            "export",
            "extras",
            "files",
            "garbage",
            "gaze_video",
        ),
        *("interrupt", "media", "model", "pipeline", "pretrain", "report", "selectors", "stop_rule", "training"),
    },
    "__main__": {"cli"},
}
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
    *("adapt", "archive", "batch", "checkpoint", "cli", "decoding", "evaluate", "export", "mllm", "network"),
    *("pipeline", "pretrain", "rl", "selectors", "stop_rule", "training", "vit"),
}


def modules() -> Iterator[tuple[str, Path]]:
    """(layer, file) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer != "__init__":
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


def test_the_table_has_no_circle() -> None:
    left = {layer: set(lower) for layer, lower in LAYERS.items()}
    while left:
        lowest = {layer for layer, lower in left.items() if not lower & left.keys()}
        assert lowest, f"rooms that import from one another: {sorted(left)}"
        left = {layer: lower for layer, lower in left.items() if layer not in lowest}


def test_no_module_imports_itself_through_others() -> None:
    graph = {}
    for _, path in modules():
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[own] = {name for name, at_once in imported(path) if at_once and name.startswith("autogaze.")}
    graphlib.TopologicalSorter(graph).prepare()  # or CycleError, naming the circle


@pytest.mark.parametrize("layer", sorted({layer for layer, _ in modules()}))
def test_a_room_imports_only_from_those_below_it(layer: str) -> None:
    assert layer in LAYERS, f"give autogaze/{layer} its place in LAYERS"
    for own, path in modules():
        for name, _ in imported(path) if own == layer else ():
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == "autogaze" and target in LAYERS and target != layer:
                assert target in LAYERS[layer], f"{path.relative_to(ROOT)} imports {name}"


def test_old_names_of_modules_import_what_has_taken_their_place() -> None:
    for old, new in MOVED.items():
        with pytest.warns(DeprecationWarning, match=f"autogaze.{old} is now"):
            sys.modules.pop(f"autogaze.{old}", None)
            assert importlib.import_module(f"autogaze.{old}") is importlib.import_module(f"autogaze.{new}")


def test_exceptions_and_nothing_else_end_in_error() -> None:
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                raised = any(base.endswith(("Error", "Exception", "Exit")) for base in bases)
                assert node.name.endswith("Error") == raised, f"{path.relative_to(ROOT)}: {node.name}({bases})"


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


LAZY = {  # imports of our own modules inside functions, each of what needs a heavy package
    ("adapt", "autogaze.adapt.run"),  # Lightning
    ("train", "autogaze.pipeline"),  # Lightning
    ("backend", "autogaze.decoding.cuda"),  # Triton
    ("encoder", "autogaze.network.patch_embedding"),  # Triton
    ("picks", "autogaze.selectors.pick_kernel"),  # Triton
    ("stages", "autogaze.rl.sb3"),  # Stable-Baselines3
}


def test_our_own_modules_are_imported_inside_functions_only_to_keep_heavy_packages_out() -> None:
    found = []
    for _, path in modules():
        for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) else ():
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autogaze"):
                    found.append((path.stem, node.module))
                elif isinstance(node, ast.Import):
                    assert not any(name.name.startswith("autogaze") for name in node.names), path.relative_to(ROOT)
    assert len(found) <= 8 and set(found) == LAZY


def test_the_links_at_the_root_lead_into_the_package() -> None:
    for name in ("pretrain", "rl", "export"):
        assert (ROOT / name).resolve() == (PACKAGE / name).resolve()
