"""`autogaze warm-up`: compile on this GPU what gazing at clips of any shape needs, before the first clip comes.

The first call does the same where it has not been done. Triton keeps what it compiled in TRITON_CACHE_DIR (by default
~/.triton/cache), so that a service, or an image of a container, may be warmed up once.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from autogaze.decoding.backends import chosen_backend
from autogaze.model import AutoGaze

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="autogaze-base", help="shipped name, folder or hub id")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"], help="default bfloat16")
    parser.add_argument("--device", default="cuda", help="default cuda")


def run(args: argparse.Namespace) -> int:
    """Gaze at one frame in every dtype.

    Raises:
        ValueError: if there is no GPU that the kernels run on.
    """
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"there is no CUDA device to warm up (--device {args.device})")
    for name in args.dtype:
        start = time.monotonic()
        model = AutoGaze.from_pretrained(args.checkpoint, args.device).to(DTYPES[name]).eval()
        backend, means = chosen_backend(model)
        side = model.config.scales[-1]
        model.generate(torch.zeros(1, 1, 3, side, side, device=args.device, dtype=DTYPES[name]), 0.01)
        print(f"{name}: {backend} ({means}), {time.monotonic() - start:.1f} s", file=sys.stderr)
    return 0
