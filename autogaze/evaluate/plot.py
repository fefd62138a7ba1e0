"""Plots of one evaluation, in colours (and dashes) that colour-blind people can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogaze.evaluate.results import Results
from autogaze.extras import explain
from autogaze.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")


def plot_losses(results: Results, path: str | Path) -> None:
    """Loss, and PSNR of the reconstruction, against what was spent; networks thick, with their confidence.

    Args:
        results: of an evaluation.
        path: a .png, .svg or .pdf file.
    """
    figure = _figure(2)
    left, right = figure.subplots(1, 2)
    for i, method in enumerate(results.methods()):
        rows = sorted((row for row in results.rows if row.method == method), key=lambda row: row.spent)
        spent, thick = [row.spent for row in rows], rows[0].sort != "selector"
        style = _style(i, thick)
        left.plot(spent, [row.loss.value for row in rows], label=method, **style)
        right.plot(spent, [row.psnr.value for row in rows], label=method, **style)
        if thick:
            left.fill_between(
                spent,
                [row.loss.low for row in rows],
                [row.loss.high for row in rows],
                color=style["color"],
                alpha=0.12,
                linewidth=0,
            )
    left.axhline(results.dense_loss, color="#666666", linewidth=1, linestyle=":")
    left.set(ylabel=f"reconstruction loss ({results.protocol.loss})", yscale="log")
    right.set(ylabel="PSNR of the reconstruction [dB]")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="share of patches looked at")
        axes.grid(alpha=0.25, which="both")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(
        f"{results.protocol.clips} clips, {results.protocol.frames} frames each (dotted: everything looked at)"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_features(results: Results, path: str | Path) -> None:
    """Distance of patch tokens of the pasted picture against gazing ratio, one panel a ViT; networks thick.

    Args:
        results: of an evaluation with features.
        path: a .png, .svg or .pdf file.
    """
    viewers = list(dict.fromkeys(row.viewer for row in results.features))
    figure = _figure(len(viewers))
    panels = figure.subplots(1, len(viewers), squeeze=False)[0]
    for axes, viewer in zip(panels, viewers, strict=True):
        for i, method in enumerate(results.methods()):
            rows = [
                row
                for row in results.features
                if (row.viewer, row.method, row.picture, row.disturbance) == (viewer, method, "pasted", "clean")
            ]
            ratios, thick = [row.gazing_ratio for row in rows], bool(rows) and rows[0].sort != "selector"
            axes.plot(ratios, [row.patch.value for row in rows], label=method, **_style(i, thick))
            if thick:
                low, high = [row.patch.low for row in rows], [row.patch.high for row in rows]
                axes.fill_between(ratios, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.12, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="gazing ratio", ylabel="1 - cosine of patch tokens", title=viewer)
        axes.grid(alpha=0.25, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"Pasted pictures of {results.protocol.clips} clips, as a ViT sees them")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _figure(panels: int) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise explain(error, "a plot") from error
    return Figure(figsize=(2 + 5 * panels, 5), layout="constrained")


def _style(number: int, thick: bool) -> dict[str, Any]:
    """Style of the curve of a method."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        "linewidth": 2.5 if thick else 1.2,
        "marker": "o",
        "markersize": 5 if thick else 3,
    }
