"""Tables of one evaluation in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autogaze.evaluate.bootstrap import Interval
from autogaze.evaluate.results import RatioForLoss, Results


def markdown(results: Results) -> str:
    """Every table, one below the other."""
    protocol = results.protocol
    head = (
        f"{protocol.clips} clips of {protocol.sources} sources ({protocol.data}), {protocol.frames} frames each "
        f"({protocol.sampling}) at {protocol.frame_px} px; loss: {protocol.loss}; {results.dense_loss:.4f} when "
        f"everything is looked at. In brackets: 95 % bootstrap interval over sources.\n"
    )
    if protocol.skipped:
        head += f"\nLeft out, not readable or too short: {', '.join(protocol.skipped)}.\n"
    parts = [
        head,
        loss_table(results),
        picture_table(results),
        comparison_table(results),
        kind_table(results),
        ratio_for_loss_table(results),
        requirement_table(results),
        worst_table(results),
    ]
    return "\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """A Markdown table; empty without rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    if not lines:
        return ""
    rule = "| --- |" + " ---: |" * (len(header) - 1)
    return "\n".join([*([f"**{title}**", ""] if title else []), "| " + " | ".join(header) + " |", rule, *lines, ""])


def loss_table(results: Results) -> str:
    """Reconstruction loss of every method at every ratio, the best first."""
    ratios = results.ratios()
    rows = []
    for method in _best_first(results):
        found = [results.row(method, ratio) for ratio in ratios]
        rows.append([method, *("" if row is None else f"{row.loss.value:.4f}" for row in found)])
    return table(["method", *(f"{ratio:g}" for ratio in ratios)], rows, "Reconstruction loss by gazing ratio")


def picture_table(results: Results) -> str:
    """PSNR and SSIM, of the reconstruction and of paste-and-upsample, at the ratio nearest 0.1."""
    ratio = _middle(results)
    rows = [row for method in _best_first(results) if (row := results.row(method, ratio))]
    return table(
        ["method", "ratio spent", "loss", "PSNR dB", "SSIM", "paste PSNR dB", "paste SSIM"],
        [
            [
                row.method,
                f"{row.spent:.3f}",
                _loss(row.loss),
                f"{row.psnr.value:.2f}",
                f"{row.ssim.value:.3f}",
                f"{row.paste_psnr.value:.2f}",
                f"{row.paste_ssim.value:.3f}",
            ]
            for row in rows
        ],
        f"At gazing ratio {ratio:g}: reconstruction, and paste-and-upsample without a network",
    )


def comparison_table(results: Results) -> str:
    """Networks against random, the best selector, the oracle and one another."""
    return table(["figure", *(f"{ratio:g}" for ratio in results.ratios())], _comparison_rows(results), "Compared")


def kind_table(results: Results) -> str:
    """Loss of every method per kind of clip, at the ratio nearest 0.1."""
    ratio = _middle(results)
    rows = [row for row in results.kinds if row.gazing_ratio == ratio]
    kinds = {row.kind: row.clips for row in rows}
    found = {(row.method, row.kind): row.loss.value for row in rows}
    return table(
        ["method", *(f"{kind} ({clips})" for kind, clips in kinds.items())],
        [
            [method, *(f"{found[method, kind]:.4f}" for kind in kinds)]
            for method in _best_first(results)
            if (method, next(iter(kinds))) in found
        ],
        f"Loss per kind of clip (clips) at {ratio:g}",
    )


def ratio_for_loss_table(results: Results) -> str:
    """The ratio that each method needs for a loss."""
    targets = dict.fromkeys((row.target, row.loss) for row in results.ratios_for_loss)
    found = {(row.method, row.target): _ratio(row) for row in results.ratios_for_loss}
    return table(
        ["loss to reach", *results.methods()],
        [
            [f"{target} = {loss:.4f}", *(found[method, target] for method in results.methods())]
            for target, loss in targets
        ],
        "Gazing ratio needed (- : more than was measured)",
    )


def requirement_table(results: Results) -> str:
    """Table of the ratios that requirement mode spends and the losses that it reaches."""
    return table(
        [
            "model",
            "requirement",
            "kind (clips)",
            "required",
            "loss",
            "ratio",
            "spread",
            "10-90 %",
            "stopped",
            "stops kept",
        ],
        [
            [
                row.method,
                row.requirement,
                f"{row.kind} ({row.clips})",
                f"{row.required_loss:.4f}",
                f"{row.loss:.4f}",
                str(row.ratio),
                f"{row.ratio_spread:.3f}",
                f"{row.ratio_low:.3f}-{row.ratio_high:.3f}",
                f"{row.stopped:.0%}",
                "-" if row.kept is None else f"{row.kept:.0%}",
            ]
            for row in results.requirements
        ],
        "When the model decides how much to look at",
    )


def worst_table(results: Results) -> str:
    """The clips on which the last network gains least."""
    return table(
        ["clip", "kind", "loss", "loss / random's"],
        [[row.clip, row.kind, f"{row.loss:.4f}", f"{row.over_random:.2f}"] for row in results.worst],
        f"Where {results.worst[0].method} gains least, at {results.worst[0].gazing_ratio:g}" if results.worst else "",
    )


def _comparison_rows(results: Results) -> list[list[str]]:
    ratios = results.ratios()
    lines: dict[tuple[str, str, str], dict[float, str]] = {}
    for row in results.comparisons:
        against = row.against
        if row.figure == "loss over" and against != "random":  # the best selector differs by ratio
            against = "the best selector"
        text = str(row.interval) + (f" ({row.against})" if against != row.against else "")
        lines.setdefault((row.method, row.figure, against), {})[row.gazing_ratio] = text
    return [[_figure(*key), *(cells.get(ratio, "") for ratio in ratios)] for key, cells in lines.items()]


def _figure(method: str, figure: str, against: str) -> str:
    return f"{method}: {figure}" if figure == "way to the oracle" else f"{method}: {figure} {against}'s"


def _best_first(results: Results) -> list[str]:
    ratio = _middle(results)

    def loss(method: str) -> float:
        row = results.row(method, ratio)
        return row.loss.value if row else float("inf")

    return sorted(results.methods(), key=loss)


def _middle(results: Results) -> float:
    return min(results.ratios(), key=lambda ratio: abs(ratio - 0.1))


def _loss(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _ratio(row: RatioForLoss) -> str:
    return "-" if row.ratio is None else f"{'<= ' * row.at_most}{row.ratio:.3f}"
