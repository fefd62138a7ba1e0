"""Plots of one evaluation, in colours (and dashes) that colour-blind people can tell apart."""

from __future__ import annotations

from pathlib import Path

from autogaze.evaluate.results import Results
from autogaze.extras import explain
from autogaze.files import atomic_path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito
DASHES = ("-", "--", ":", "-.")


def plot_losses(results: Results, path: str | Path) -> None:
    """Loss, and PSNR of the reconstruction, against what was spent; networks thick, with their confidence.

    Args:
        results: of an evaluation.
        path: a .png, .svg or .pdf file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise explain(error, "a plot") from error
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, method in enumerate(results.methods()):
        rows = sorted((row for row in results.rows if row.method == method), key=lambda row: row.spent)
        spent, thick = [row.spent for row in rows], rows[0].sort != "selector"
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
            "linewidth": 2.5 if thick else 1.2,
            "marker": "o",
            "markersize": 5 if thick else 3,
        }
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
