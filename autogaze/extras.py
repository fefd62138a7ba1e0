"""Extras: which optional packages belong to which one, and what to type when one is missing."""

from __future__ import annotations

PACKAGES = {  # import name: extra
    "pytorch_lightning": "train",
    "tensorboard": "train",
    "gymnasium": "train",
    "stable_baselines3": "train",
    "pyarrow": "train",
    "yaml": "train",
    "tqdm": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "tensorrt_rtx": "trt",
    "peft": "adapt",
    "timm": "vit",
    "transformers": "vit",
    "huggingface_hub": "hub",
    "gradio": "demo",
    "ray": "ray",
    "torchcodec": "video",
}


def install(extra: str) -> str:
    """Commands that install an extra, as a release and in a clone."""
    return f"pip install 'autogaze[{extra}]', or in a clone: pip install -e '.[{extra}]'"


def explain(error: ImportError, what: str) -> ImportError:
    """An error that names the missing package and its extra, or says why one that is there cannot be imported.

    Args:
        error: that importing raised.
        what: needs the package, as the subject of a sentence.
    """
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or error.name != package:
        return ImportError(f"{what} cannot be used, since importing {package or 'a package'} fails: {error}")
    if package in PACKAGES:
        return ImportError(f"{what} needs {package}: {install(PACKAGES[package])}")
    return ImportError(f"{what} needs {package}: pip install {package}")
