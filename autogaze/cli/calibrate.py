"""`autogaze calibrate MODEL`: the stop rule of a model again, without a run of `autogaze train`.

    autogaze calibrate MODEL --data VIDEOS/val
    autogaze calibrate MODEL --data VIDEOS/val --fit-head VIDEOS/train     what it predicts first
    autogaze calibrate MODEL --data VIDEOS/train VIDEOS/val                more sources

Every video is taken twice: frames spread over it, and neighbouring ones, since a stop rule has to hold for both.
Sources are those of a `manifest.csv`; without one every video is a source of its own. With few of them the promise
needs wide margins. A learned loss head tells the losses of videos that it learned from too well; a model with a
residual map, whose predictions come from pixels and two fitted weights, may be calibrated on those too. Prints a pair
(asked, threshold) a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from autogaze.checkpoint import CONFIG, WEIGHTS, find
from autogaze.device import pick_device
from autogaze.evaluate.clips import ClipSet, load_clips
from autogaze.evaluate.evaluation import load_reconstructor
from autogaze.files import write_json
from autogaze.model import AutoGaze
from autogaze.pretrain.judge import AnyJudge, make_judge
from autogaze.stop_rule.calibration import Sampling, Trial, fit_calibration, predicted_range, run_trials
from autogaze.stop_rule.loss_head import fit_loss_head

STRIDES = (None, 1)  # spread over the video, and neighbouring frames


def run(args: argparse.Namespace) -> int:
    for asked, threshold in recalibrate(args):
        print(f"{asked:.6f} {threshold:.6f}")
    return 0


def recalibrate(args: argparse.Namespace) -> tuple[tuple[float, float], ...]:
    """Run the trials, fit, and write the pairs into the config of the model."""
    device, folder = pick_device(args.device), find(args.model)
    model = AutoGaze.from_pretrained(folder, device=device).eval()
    judge = make_judge(args.judge, lambda: load_reconstructor(args.reconstructor), model.preprocessor).to(device)
    samplings = [taken(args, stride, model) for stride in STRIDES]
    dtype = fit_head(args, model, judge, folder) if args.fit_head else None
    tried = args.thresholds or predicted_range(model, [video for one in samplings for video in one.clips], args.count)
    trials: list[list[Trial]] = [[] for _ in samplings]
    for threshold in tqdm(tried, unit="threshold", disable=None):
        for done, sampling in zip(trials, samplings, strict=True):
            done += run_trials(model, judge, sampling, [threshold])
    pairs = fit_calibration(trials)
    if dtype is not None:
        model.with_calibration(pairs).save_pretrained(folder, dtype)
        return pairs
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    write_json(folder / CONFIG, {**config, "calibration": [list(pair) for pair in pairs]})
    return pairs


def fit_head(args: argparse.Namespace, model: AutoGaze, judge: AnyJudge, folder: Path) -> torch.dtype:
    """Fit the predicted loss in memory on clips that the model may know; returns the type of the weights on disk."""
    fit = fit_loss_head(
        model,
        judge,
        (
            video
            for stride in STRIDES
            for _, video in read(args, args.fit_head, stride, model).batches(args.batch, model.device)
        ),
    )
    print(
        f"predicted loss: {fit.samples} samples, mean error {fit.before:.3f} of it before, {fit.after:.3f} after",
        file=sys.stderr,
    )
    with safe_open(folder / WEIGHTS, "pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    model.to(dtype).float()  # what is calibrated is what will be read
    return dtype


def taken(args: argparse.Namespace, stride: int | None, model: AutoGaze) -> Sampling:
    """The clips of all folders, in one way of taking frames."""
    folders = [read(args, folder, stride, model) for folder in args.data]
    return Sampling(
        [video for clips in folders for _, video in clips.batches(args.batch, model.device)],
        [group for clips in folders for group in clips.groups],
    )


def read(args: argparse.Namespace, data: Path, stride: int | None, model: AutoGaze) -> ClipSet:
    """The clips of a folder."""
    return load_clips(data, model.grid, model.preprocessor, args.frames, stride, args.limit)


def _numbers(text: str) -> list[float]:
    return sorted(float(part) for part in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, a run, or a shipped name: its config.json is changed")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        nargs="+",
        metavar="DIR",
        help="folders of videos; those that the model learned from only if it has the residual map",
    )
    parser.add_argument(
        "--fit-head",
        type=Path,
        metavar="DIR",
        help="first fit the predicted loss on the videos of this folder, which may be those of "
        "training; the weights are written too",
    )
    parser.add_argument(
        "--judge", default="reconstructor", metavar="TERMS", help="reconstructor, features:MODEL, l1, or a weighted sum"
    )
    parser.add_argument(
        "--reconstructor", metavar="R", help="folder of the reconstructor that judges (default: the shipped one)"
    )
    parser.add_argument("--count", type=int, default=16, help="thresholds to try (default 16)")
    parser.add_argument(
        "--thresholds",
        type=_numbers,
        metavar="L,L,...",
        help="predicted losses to stop at (default: --count of them over what the model predicts)",
    )
    parser.add_argument("--frames", type=int, default=16, help="frames of every clip (default 16)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most N clips of a folder, spread over it (default: all)"
    )
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
