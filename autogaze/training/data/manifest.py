"""The `manifest.csv` of a folder of clips: columns `file` (relative to its own folder), `kind` and `source_group`."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

from autogaze.files import read_text

UNKNOWN = "unknown"  # kind of a clip that no manifest names


def clip_facts(folder: Path, path: Path) -> tuple[str, str]:
    """(kind, source group) of a clip below `folder`, from the manifest in it or in the folder above; a clip that none
    names is a source of its own."""
    within, real = path.relative_to(folder), folder.resolve()
    for root, name in ((folder, within), (real.parent, real.name / within)):
        row = _manifest(root).get(name.as_posix())
        if row is not None:
            return row.get("kind") or UNKNOWN, row.get("source_group") or within.as_posix()
    return UNKNOWN, within.as_posix()


def _manifest(root: Path) -> dict[str, dict[str, str]]:
    path = root / "manifest.csv"
    if not path.is_file():
        return {}
    return {row["file"]: row for row in csv.DictReader(StringIO(read_text(path))) if row.get("file")}
