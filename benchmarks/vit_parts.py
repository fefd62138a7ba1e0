"""The parts that the break-even chart is made of, measured one by one; the chart; and its page in docs/."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autogaze import AutoGaze, Gaze, PatchGrid
from autogaze.core.overlay import SCALE_COLOURS
from autogaze.files import atomic_path, write_json, write_text
from autogaze.model import AutoGazeConfig
from autogaze.report.break_even import PARTS_FILE, Parts, load_parts, patches_per_frame, will_it_pay
from autogaze.vit import GazedViT
from benchmarks.vit_opponents import dense_frames
from benchmarks.vit_timing import graphed, measure

VITS = {
    "vit_small_patch16_224": (224, 384),
    "vit_base_patch16_siglip_224": (224, 384),
    "vit_large_patch16_siglip_256": (224, 384),
    "vit_so400m_patch14_siglip_378": (224, 378),
}
FRAMES = (1, 4, 16, 64, 256, 1024)
TOKENS = (64, 256, 1024, 4096, 16384, 65536)
CLIPS, RATIOS = (1, 4, 16, 64, 256), (0.05, 0.1, 0.25, 0.5, 0.75)
CHART_FRAMES, CHART_BATCHES = (1, 16, 256), (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS_A_FRAME = 26  # ratio 0.1 of the published grid
PAGE = Path(__file__).resolve().parent.parent / "docs" / "vit-break-even.md"


@torch.inference_mode()
def measure_parts(device: torch.device, quick: bool, runs: int) -> dict[str, Any]:
    """Dense time, encode time and gaze time, each alone; eager kernels in CUDA graphs on both sides."""
    from benchmarks.vit import make_vit

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    vits: dict[str, Any] = {}
    for name, sizes in VITS.items():
        entry: dict[str, Any] = {"dense": {}}
        for size in sizes[:1] if quick else sizes:
            vit = make_vit(name, size, quick).to(device, dtype).eval()
            points = []
            for frames in FRAMES[:2] if quick else FRAMES:
                video = torch.randn(1, frames, 3, size, size, device=device, dtype=dtype)
                call = dense_frames(vit, video, 256)
                points.append((frames, measure(graphed(call, device), device, runs).median_ms))
            entry["dense"][size] = points
        first = vit.blocks[0]
        entry |= {
            "patch_size": vit.patch_embed.patch_size[0],
            "width": vit.embed_dim,
            "depth": len(vit.blocks),
            "mlp_width": first.mlp.fc1.out_features,
            "encode": [
                (tokens, _encode_ms(vit, tokens, sizes[0], device, dtype, runs))
                for tokens in (TOKENS[:2] if quick else TOKENS)
            ],
        }
        vits[name] = entry
        print(f"{name}: {entry}", file=sys.stderr, flush=True)
    model = AutoGaze(AutoGazeConfig.tiny() if quick else AutoGazeConfig.base()).to(device, dtype).eval()
    gaze = {
        ratio: [
            (clips, _gaze_ms(model, clips, ratio, device, dtype, max(3, runs // 4)))
            for clips in (CLIPS[:1] if quick else CLIPS)
        ]
        for ratio in (RATIOS[:2] if quick else RATIOS)
    }
    print(f"gaze: {gaze}", file=sys.stderr, flush=True)
    return {"vits": vits, "gaze": gaze}


def ship(result: dict[str, Any]) -> None:
    """Write the parts into the package and the page into docs/."""
    write_json(
        PARTS_FILE,
        {"device": result["device"], "date": result["date"], "torch": result["torch"], **result["parts"]},
    )
    load_parts.cache_clear()
    write_text(PAGE, page(load_parts()))
    draw(load_parts(), PAGE.with_suffix(".svg"))


def draw(parts: Parts, path: Path) -> None:
    """The chart: the ratio below which gazing pays, against the batch, for every ViT, size and clip length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, len(CHART_FRAMES), sharey=True)
    for axis, frames in zip(axes, CHART_FRAMES, strict=True):
        for index, (name, part) in enumerate(parts.vits.items()):
            for style, size in zip(("-", "--"), part.dense, strict=False):
                edges = [
                    will_it_pay(name, size, frames, batch, 0.1, parts).break_even_ratio or 0 for batch in CHART_BATCHES
                ]
                label = f"{name.removeprefix('vit_').split('_patch')[0]}, {size} px"
                colour = [channel / 255 for channel in SCALE_COLOURS[index % len(SCALE_COLOURS)]]
                axis.plot(CHART_BATCHES, edges, style, marker="o", markersize=3, color=colour, label=label)
        axis.set(
            title=f"clips of {frames} frame{'s' * (frames > 1)}", xlabel="clips at once", xscale="log", ylim=(0, 1)
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("gazing pays below this ratio")
    axes[-1].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def page(parts: Parts) -> str:
    """The break-even chart as a page."""
    lines = [
        "# Where gazing pays, and where it does not",
        "",
        f"Written by `python -m benchmarks.vit --parts --ship` from parts measured on {parts.device} "
        f"({parts.date[:10]}): the dense ViT, encoding packed patches, and choosing them. bf16, CUDA graphs, "
        "eager kernels on both sides. Ask for your own case with "
        "`autogaze info --vit NAME --size 224 --frames 16 --batch 8 --ratio 0.1`.",
        "",
        "![The ratio below which gazing pays, against the number of clips](vit-break-even.svg)",
        "",
        "Each cell: times faster than dense at ratio 0.1, then the ratio below which gazing pays (`never`: at no "
        "ratio). Less than 1 means slower: leave the gaze out.",
        "",
    ]
    batches = (1, 8, 64)
    for frames in CHART_FRAMES:
        lines += [
            f"## Clips of {frames} frame{'s' * (frames > 1)}",
            "",
            "| ViT | pixels | patches a frame | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
            "| --- | --- | --- |" + " --- |" * len(batches),
        ]
        for name, part in parts.vits.items():
            for size in part.dense:
                cells = [_cell(parts, name, size, frames, batch) for batch in batches]
                lines.append(
                    f"| {name} | {size} | {patches_per_frame(size, part.patch_size)} | " + " | ".join(cells) + " |"
                )
        lines.append("")
    return "\n".join(lines)


def _cell(parts: Parts, vit: str, size: int, frames: int, batch: int) -> str:
    verdict = will_it_pay(vit, size, frames, batch, 0.1, parts)
    edge = verdict.break_even_ratio
    return f"{verdict.times_faster:.1f} x, {'never' if edge is None else f'below {edge:.2f}'}"


def _encode_ms(
    vit: torch.nn.Module, tokens: int, size: int, device: torch.device, dtype: torch.dtype, runs: int
) -> float:
    gazed = GazedViT(vit)
    frames = max(1, tokens // TOKENS_A_FRAME)
    side = size // gazed.patch_size
    grid = PatchGrid(
        tuple(sorted({max(1, round(side * share)) * gazed.patch_size for share in (1 / 7, 2 / 7, 1 / 2, 1)})),
        gazed.patch_size,
    )
    slots = tokens // frames
    ids = torch.rand(1, frames, grid.patches_per_frame, device=device).argsort(-1)[..., :slots]
    gaze = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), grid)
    video = torch.randn(1, frames, 3, size, size, device=device, dtype=dtype)
    call: Callable[[], object] = graphed(lambda: gazed.encode_gaze(video, gaze, gaze.ids.numel()), device)
    return measure(call, device, runs).median_ms


def _gaze_ms(model: AutoGaze, clips: int, ratio: float, device: torch.device, dtype: torch.dtype, runs: int) -> float:
    video = torch.randn(clips, 16, 3, 224, 224, device=device, dtype=dtype)
    return measure(lambda: model.generate(video, gazing_ratio=ratio), device, runs).median_ms
