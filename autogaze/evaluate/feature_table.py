"""Tables of what pretrained ViTs see, in Markdown."""

from __future__ import annotations

from autogaze.evaluate.feature_summary import ALL, MINUS, RATIO, FeatureRow
from autogaze.evaluate.features import PASTED
from autogaze.evaluate.results import Results
from autogaze.evaluate.table import table

CLEAN = "clean"


def feature_tables(results: Results) -> str:
    """Every table, one below the other; empty without features."""
    parts = []
    for viewer in dict.fromkeys(row.viewer for row in results.features):
        parts += [distance_table(results, viewer, picture) for picture in _pictures(results)]
        parts += [disturbance_table(results, viewer), kind_table(results, viewer), network_table(results, viewer)]
    return "\n".join(part for part in parts if part)


def distance_table(results: Results, viewer: str, picture: str) -> str:
    """Distance of patch tokens (and of the pooled feature) of every method at every ratio, the best first."""
    rows = [row for row in results.features if (row.viewer, row.picture, row.disturbance) == (viewer, picture, CLEAN)]
    ratios = sorted({row.gazing_ratio for row in rows})
    return table(
        ["method", *(f"{ratio:g}" for ratio in ratios)],
        [[name, *(cells.get(ratio, "") for ratio in ratios)] for name, cells in _by_method(rows).items()],
        f"{viewer}: 1 - cosine of patch tokens (pooled feature) of the {picture} picture, by gazing ratio",
    )


def disturbance_table(results: Results, viewer: str) -> str:
    """Patch tokens of the pasted picture of disturbed clips."""
    rows = [row for row in results.features if (row.viewer, row.picture) == (viewer, PASTED)]
    rows = [row for row in rows if row.disturbance != CLEAN]
    columns = list(dict.fromkeys((row.disturbance, row.gazing_ratio) for row in rows if row.sort != "reference"))
    found = {(row.method, row.disturbance, row.gazing_ratio): f"{row.patch.value:.4f}" for row in rows}
    found |= {
        (row.method, row.disturbance, ratio): f"{row.patch.value:.4f}"
        for row in rows
        if row.sort == "reference"
        for _, ratio in columns
    }
    return table(
        ["method", *(f"{name} {ratio:g}" for name, ratio in columns)],
        [[method, *(found.get((method, name, ratio), "") for name, ratio in columns)] for method in _by_method(rows)],
        f"{viewer}: patch tokens of the pasted picture of disturbed clips",
    )


def kind_table(results: Results, viewer: str) -> str:
    """Networks over difference, on each kind of clip."""
    rows = [row for row in results.feature_comparisons if (row.viewer, row.figure) == (viewer, RATIO)]
    rows = [row for row in rows if row.disturbance == CLEAN and row.method in results.methods("network")]
    kinds = dict.fromkeys((row.kind, row.clips) for row in rows)
    lines = dict.fromkeys((row.method, row.against, row.gazing_ratio) for row in rows)
    found = {(row.method, row.against, row.gazing_ratio, row.kind): f"{row.interval.value:.3f}" for row in rows}
    return table(
        ["method / against", "ratio", *(f"{kind} ({clips})" for kind, clips in kinds)],
        [
            [f"{line[0]} / {line[1]}", f"{line[2]:g}", *(found.get((*line, kind), "") for kind, _ in kinds)]
            for line in lines
        ],
        f"{viewer}: patch tokens, distance over the other's per kind of clip (clips)",
    )


def network_table(results: Results, viewer: str) -> str:
    """Networks over difference and over one another, with confidence."""
    networks = results.methods("network")
    rows = [
        row
        for row in results.feature_comparisons
        if row.viewer == viewer and row.kind == ALL and row.method in networks and row.figure in (RATIO, MINUS)
    ]
    columns = list(dict.fromkeys((row.disturbance, row.gazing_ratio) for row in rows))
    lines = dict.fromkeys((row.method, row.figure, row.against) for row in rows)
    found = {(row.method, row.figure, row.against, row.disturbance, row.gazing_ratio): row.interval for row in rows}
    return table(
        ["figure", *(f"{name} {ratio:g}" for name, ratio in columns)],
        [
            [f"{line[0]} {line[1]} {line[2]}", *(str(found.get((*line, *column), "")) for column in columns)]
            for line in lines
        ],
        f"{viewer}: patch tokens, compared",
    )


def _pictures(results: Results) -> list[str]:
    return list(dict.fromkeys(row.picture for row in results.features))


def _by_method(rows: list[FeatureRow]) -> dict[str, dict[float, str]]:
    """Cells by method and ratio, the method with the least distance at the ratio nearest 0.1 first."""
    at = {(row.method, row.gazing_ratio): row for row in rows}
    middle = min({row.gazing_ratio for row in rows}, key=lambda ratio: abs(ratio - 0.1), default=0.1)
    names = sorted(
        dict.fromkeys(row.method for row in rows),
        key=lambda name: at[name, middle].patch.value if (name, middle) in at else float("inf"),
    )
    return {
        name: {
            ratio: f"{row.patch.value:.4f} ({row.pooled.value:.4f})"
            for (method, ratio), row in at.items()
            if method == name
        }
        for name in names
    }
