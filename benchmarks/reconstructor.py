"""The judge's loss against the gazing ratio, for random, coarse-first and greedy gazes: it must fall smoothly to 1.0.

    python -m benchmarks.reconstructor --reconstructor RUN/reconstructor --data VIDEOS --plot curve.png [--out FILE]

Every frame of a clip has the same budget. Plain paste-and-upsample of the same random gazes is drawn beside them: the
difference is what the network adds. The JSON is the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.files import atomic_path, write_json
from autogaze.pretrain.labels.greedy import greedy_gaze
from autogaze.pretrain.reconstructor.gaze_mix import top_of
from autogaze.pretrain.reconstructor.network import Reconstructor
from autogaze.pretrain.reconstructor.paste import paste
from autogaze.training.data.batches import ClipData
from benchmarks.timing import machine

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
GREEDY_MOST = 0.4  # a search for more takes long and says little
COLOURS = {"random": "#0072B2", "coarse first": "#E69F00", "greedy": "#009E73", "random, paste only": "#999999"}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = Reconstructor.from_pretrained(args.reconstructor, device)
    data = ClipData(args.data, frames=args.frames, size=model.grid.height_px, validate_clips=args.clips, resident_gib=0)
    video = data.render(data.validation_recipes(), device).video
    curves = measure(model, video, args.ratios, args.batch_clips)
    result = {
        "what": "reconstructor",
        "machine": machine(),
        "clips": len(video),
        "frames": args.frames,
        "loss": model.config.loss,
        "curves": curves,
    }
    if args.plot is not None:
        draw(curves, model.config.loss, args.plot)
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result))
    return 0


@torch.no_grad()
def measure(
    model: Reconstructor, video: Tensor, ratios: Sequence[float], batch: int = 8
) -> dict[str, dict[float, float]]:
    """Mean loss of every kind of gaze at every ratio."""
    patches = model.grid.patches_per_frame
    generator = torch.Generator().manual_seed(0)
    blind = torch.rand(*video.shape[:2], patches, generator=generator).to(video.device)
    coarse = -torch.arange(patches, device=video.device).float().expand_as(blind)
    curves: dict[str, dict[float, float]] = {name: {} for name in COLOURS}
    for ratio in ratios:
        budgets = torch.full(video.shape[:2], model.grid.budget(ratio), device=video.device)
        parts: dict[str, list[Tensor]] = {name: [] for name in COLOURS}
        for i in range(0, len(video), batch):
            clip, budget = video[i : i + batch], budgets[i : i + batch]
            random = top_of(blind[i : i + batch], budget)
            parts["random"].append(model.reconstruct(clip, random).loss)
            parts["coarse first"].append(model.reconstruct(clip, top_of(coarse[i : i + batch], budget)).loss)
            pasted = paste(clip, Gaze.from_patch_mask(random, model.grid))
            parts["random, paste only"].append(model.objective(pasted, clip))
            if ratio <= GREEDY_MOST:
                found = greedy_gaze(model, clip, budget)
                parts["greedy"].append(found.loss.gather(2, budget[..., None])[..., 0])
        for name, losses in parts.items():
            if losses:
                curves[name][ratio] = torch.cat(losses).mean().item()
        print(
            f"ratio {ratio}: " + ", ".join(f"{name} {c[ratio]:.4f}" for name, c in curves.items() if ratio in c),
            file=sys.stderr,
        )
    return curves


def draw(curves: dict[str, dict[float, float]], loss: str, path: Path) -> None:
    """One line a kind of gaze; written whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, curve in curves.items():
        axes.plot(
            list(curve), list(curve.values()), "o-" if "paste" not in name else "o--", label=name, color=COLOURS[name]
        )
    axes.set(xscale="log", xlabel="gazing ratio", ylabel=f"reconstruction loss ({loss})", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstructor", description=__doc__.split("\n")[0])
    parser.add_argument("--reconstructor", required=True, type=Path, help="folder of a trained reconstructor")
    parser.add_argument("--data", required=True, type=Path, help="folder of videos; its validation split is judged")
    parser.add_argument("--clips", type=int, default=16, help="clips (default 16)")
    parser.add_argument("--frames", type=int, default=16, help="frames a clip (default 16)")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS), help="gazing ratios")
    parser.add_argument("--batch-clips", type=int, default=8, help="clips a pass (default 8)")
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")
    parser.add_argument("--plot", type=Path, help="write the curves here (.png)")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
