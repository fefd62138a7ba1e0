"""The model card: what the shipped weights are, how they were made, how good they are and where they are not.

    python -m autogaze.cli.card results.json --weights autogaze-base --training RUN/summary.json \\
        --commit HASH --data "200 clips, 1200 photos" --out autogaze/weights/README.md

Every figure is read from a file: results of `autogaze evaluate` or `benchmarks.quality`, the summary that
`autogaze train` leaves in a run's folder, and the checkpoint itself. What was not measured is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autogaze.checkpoint import WEIGHTS, find
from autogaze.evaluate.feature_summary import BASELINE, RATIO
from autogaze.evaluate.feature_table import feature_tables
from autogaze.evaluate.methods import NETWORK, SELECTOR
from autogaze.evaluate.requirement import ALL
from autogaze.evaluate.results import Comparison, Results
from autogaze.evaluate.summary import LOSS_OVER, RANDOM
from autogaze.evaluate.table import (
    comparison_table,
    kind_table,
    loss_table,
    markdown,
    requirement_table,
    table,
    worst_table,
)
from autogaze.files import write_text
from autogaze.model import AutoGaze

STAGES = ("reconstructor", "labels", "pretrain", "rl")


@dataclass(frozen=True)
class Card:
    """Facts and figures of a model card."""

    name: str  # of the checkpoint
    scales: tuple[int, ...]  # pixels
    parameters: int
    size_mb: float  # of its weights file
    results: Results
    source: str  # name of the results file
    training: Mapping[str, Any]  # summary of the run; may be empty
    commit: str
    data: str  # what it was trained on, in words

    def text(self) -> str:
        """The whole card in Markdown."""
        licence = (
            "## Licence\n\nApache-2.0, like the code. Trained by this project's own commands from random "
            "weights; no published weights were used.\n"
        )
        parts = [self._head(), self._training(), self._quality(), self._limits(), licence]
        return "\n".join(part for part in parts if part)

    def _head(self) -> str:
        scales = "+".join(map(str, self.scales))
        return (
            f"# {self.name}\n\nChooses, frame by frame, the patches of a video that a ViT should look at. "
            f"{self.parameters:,} parameters, {self.size_mb:.1f} MB, scales {scales}.\n\n"
            "```python\nfrom autogaze import AutoGaze\n\n"
            f'model = AutoGaze.from_pretrained("{self.name}")\n'
            "gaze = model.generate(video, gazing_ratio=0.1)  # video: (B, T, 3, 224, 224), as model.preprocessor "
            "returns\n```\n"
        )

    def _training(self) -> str:
        rows = [[name, _stage(told)] for name in STAGES if isinstance(told := self.training.get(name), dict)]
        lines = [
            "## How it was made",
            "",
            f"Data: {self.data}." if self.data else "",
            f"Commit: {self.commit}." if self.commit else "",
            "",
            table(["stage", "what the run's summary says"], rows),
        ]
        return "\n".join(lines) if rows or self.data or self.commit else ""

    def _quality(self) -> str:
        protocol = self.results.protocol
        intro = (
            f"## How good it is\n\nFrom `{self.source}`: {protocol.clips} clips of {protocol.sources} sources "
            f"({protocol.data}), {protocol.frames} frames each ({protocol.sampling}) at "
            f"{protocol.frame_px} px. Loss of the reconstructor: {protocol.loss}; {self.results.dense_loss:.4f} "
            "when everything is looked at. Brackets: 95 % bootstrap interval over sources.\n"
        )
        own = tuple(row for row in self.results.requirements if row.method == self._name)
        results = replace(self.results, requirements=own)
        tables = [make(results) for make in (loss_table, comparison_table, kind_table, requirement_table)]
        return "\n".join([intro, *filter(None, [*tables, feature_tables(results)])])

    @property
    def _name(self) -> str:
        """Of the weights in the results."""
        return self.results.methods(NETWORK)[-1]

    def _limits(self) -> str:
        """Weaknesses that the figures show."""
        name = self._name
        beaten = [
            row
            for row in self.results.kinds
            if row.method == name and row.over_random is not None and row.over_random.value > 0
        ]
        lines = [
            f"- On {row.kind} at ratio {row.gazing_ratio:g} it loses to random: {row.loss.value:.4f}, "
            f"{row.over_random.value:+.4f}."
            for row in beaten
            if row.over_random is not None
        ]
        lines += [
            f"- At ratio {row.gazing_ratio:g} {row.against}, which needs no network, "
            f"{'does better' if row.interval.low > 1 else 'may be as good'}: our loss is {row.interval} of its."
            for row in _against_best(self.results, name)
            if row.interval.high > 1
        ]
        lines += [
            f"- {row.viewer}, {row.disturbance} clips of kind {row.kind} at ratio {row.gazing_ratio:g}: "
            f"the distance is {row.interval} of {row.against}'s."
            for row in self.results.feature_comparisons
            if (row.method, row.against, row.figure) == (name, BASELINE, RATIO) and row.interval.value > 1
        ]
        lines += [
            f'- Requirement "{row.requirement}": {row.kept:.0%} of the frames that stopped early met it.'
            for row in self.results.requirements
            if row.method == name and row.kind == ALL and row.kept is not None
        ]
        seen = " and by what ViTs see of the pasted picture" if self.results.features else ""
        lines.append(
            f"- Judged by a reconstructor's loss{seen}, on short clips. Nothing is said here about what a ViT does "
            "with the chosen patches alone."
        )
        return "\n".join(["## Limits", "", *lines, "", worst_table(self.results)])


def make_card(results: Path, weights: str, training: Path | None = None, commit: str = "", data: str = "") -> Card:
    """Read everything that a card needs.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or is something else.
    """
    found = Results.load(results)
    if not found.methods(NETWORK):
        raise ValueError(f"{results} holds no network's results")
    model = AutoGaze.from_pretrained(weights)
    size_mb = (find(weights) / WEIGHTS).stat().st_size / 1e6
    summary = json.loads(training.read_text(encoding="utf-8")) if training is not None else {}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Card(Path(weights).name, model.grid.scales, parameters, size_mb, found, results.name, summary, commit, data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="autogaze.cli.card", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, help="JSON file of an evaluation; its last network is the one shipped")
    parser.add_argument("--weights", required=True, help="shipped name or folder of the checkpoint")
    parser.add_argument("--training", type=Path, help="summary.json of the run")
    parser.add_argument("--commit", default="", help="of the code that trained it")
    parser.add_argument("--data", default="", help="what it was trained on, in words")
    parser.add_argument("--full", action="store_true", help="end with every table of the evaluation")
    parser.add_argument("--out", type=Path, help="file to write (default: stdout)")
    args = parser.parse_args(argv)
    card = make_card(args.results, args.weights, args.training, args.commit, args.data)
    text = card.text() + ("\n## Everything measured\n\n" + markdown(card.results) if args.full else "")
    if args.out is None:
        print(text)
    else:
        write_text(args.out, text)
    return 0


def _against_best(results: Results, name: str) -> list[Comparison]:
    return [
        row
        for row in results.comparisons
        if row.method == name
        and row.figure == LOSS_OVER
        and row.against != RANDOM
        and row.against in results.methods(SELECTOR)
    ]


def _stage(stage: Mapping[str, Any]) -> str:
    numbers = {key.replace("_", " "): value for key, value in stage.items() if isinstance(value, int | float)}
    return ", ".join(f"{key} {value:g}" for key, value in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
