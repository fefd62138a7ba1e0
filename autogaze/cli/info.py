"""`autogaze info X`: what a checkpoint, an ONNX file or an engine is; `autogaze info --vit NAME`: will gazing pay?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autogaze import checkpoint
from autogaze.decoding.backends import chosen_backend
from autogaze.export.targets import TARGETS
from autogaze.model import AutoGaze
from autogaze.report import break_even


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", help="checkpoint (shipped name, folder, run, hub id), .onnx file or TensorRT engine"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    break_even.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.vit is not None:
        return break_even.run(args)
    if args.what is None:
        raise ValueError("say what to describe: a checkpoint, an .onnx file, an engine, or --vit NAME")
    facts = describe(args.what)
    if args.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):{width}}  {value}")
    return 0


def describe(what: str) -> dict[str, Any]:
    """Facts about a file or folder.

    Raises:
        FileNotFoundError: if there is no such thing.
        ValueError: if it is of no known kind, or damaged.
        ImportError: if reading it needs an extra that is not installed.
    """
    path = Path(what)
    target = next((target for target in TARGETS if path.suffix in target.suffixes), None)
    if target is not None:
        return {"kind": target.kind, "file": what, **target.describe(path)}
    if path.is_file():
        suffixes = sorted({suffix for target in TARGETS for suffix in target.suffixes})
        raise ValueError(f"{what} is a file of no known kind: expected a checkpoint folder, {', '.join(suffixes)}")
    return {"kind": "checkpoint", "folder": str(checkpoint.find(what)), **_checkpoint(what)}


def _checkpoint(what: str) -> dict[str, Any]:
    model = AutoGaze.from_pretrained(what, "cpu")
    config = asdict(model.config)
    rope = config.pop("rope")
    way, reason = chosen_backend(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "patches_per_frame": model.grid.patches_per_frame,
        **config,
        "rope_theta": rope["theta"],
        "preprocessing": asdict(model.preprocessor),
        "decoding_on_cpu": f"{way} ({reason})",
    }
