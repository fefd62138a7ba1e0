"""`autogaze adapt`: from a folder of videos to a ViT that understands gazed patches."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from autogaze.adapt.recipe import load_recipe
from autogaze.files import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vit", required=True, help="timm/NAME, a hub id, or a folder of a transformers model")
    parser.add_argument("--data", help="folder of videos and photos, flat or with train/ and val/ (default: scenes)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; adapter.safetensors is written there"
    )
    parser.add_argument("--preset", default="base", help="tiny: a CPU, minutes; base: a GPU, minutes (default: base)")
    parser.add_argument("--attention", help="memory, nearest, frame, block_causal or joint (default: memory)")
    parser.add_argument("--size", type=int, help="pixels a side of the ViT's frames (default: what it was trained on)")
    parser.add_argument("--weights", help="lora, all or none: the embeddings of scale and age alone (default: lora)")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on the last line of stdout")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe: max_minutes=4, rank=8, chooser=difference"
    )


def run(args: argparse.Namespace) -> int:
    """Adapt a ViT; see `autogaze adapt --help`."""
    recipe = load_recipe(args.preset, args.settings, attention=args.attention, weights=args.weights)
    args.out = check_folder(args.out)
    if (args.out / "adapter.safetensors").exists() and not args.resume:
        raise ValueError(f"{args.out} holds an adapter already: use --resume, or another --out")
    from autogaze.adapt.run import adapt  # Lightning takes seconds to import: check the words first

    summary = adapt(args.vit, args.data, args.out, recipe, args.size, args.resume)
    print(json.dumps(summary) if args.json else summary["adapter"])
    if not args.json:
        print(f"best distance in validation {summary['best_distance']:.4f}", file=sys.stderr)
    return 0
