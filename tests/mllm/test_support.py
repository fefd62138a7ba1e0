"""The support table is what these models really do: it is generated from them and compared with the page.

Write it anew with `AUTOGAZE_WRITE_DOCS=1 pytest tests/mllm/test_support.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

pytest.importorskip("transformers")

import transformers  # noqa: E402

from autogaze.files import write_text  # noqa: E402
from autogaze.mllm import GazedVideoLM  # noqa: E402
from autogaze.mllm.families import KNOWN, REFUSALS  # noqa: E402
from tests.mllm.mllm_models import CASES, Case, built, clip, settings, talk  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mllm.md"
START, END = "<!-- written by tests/mllm/test_support.py -->\n", "<!-- end -->\n"

HEADER = """
| family | class of transformers | unit | positions in the tower |
| --- | --- | --- | --- |
"""

REFUSED = """
Not these: `GazedVideoLM` raises a `ValueError` that says why. "Not yet" marks towers with whole units for which no
family is written.

| model | | why |
| --- | --- | --- |
"""


def _row(case: Case) -> str:
    """A family's line, with the unit as its tiny model has it."""
    known = next(known for known in KNOWN if known.name == case.name)
    assert type(built(case)[0]).__name__ == known.model
    (units,) = GazedVideoLM(*built(case)).prepare(talk(clip(case)), **settings(case)).kept
    height, width = (pixels // count for pixels, count in zip(case.frame_size, units.shape[1:], strict=True))
    frames = {1: "a frame", 2: "2 frames"}[case.frames // len(units)]
    return f"| {known.name} | `{known.model}` | {height} x {width} px of {frames} | {known.positions} |"


def _section() -> str:
    rows = "\n".join(_row(case) for case in CASES)
    refused = "\n".join(
        f"| {refusal.name} | {'not yet' if refusal.possible else 'cannot'} | {refusal.reason} |" for refusal in REFUSALS
    )
    return f"{HEADER}{rows}\n{REFUSED}{refused}\n\n"


def test_the_page_says_what_the_models_do() -> None:
    before, start, rest = PAGE.read_text().partition(START)
    old, end, after = rest.partition(END)
    assert start and end
    if os.environ.get("AUTOGAZE_WRITE_DOCS") == "1":
        old = _section()
        write_text(PAGE, before + start + old + end + after)
    assert old == _section()


def test_every_known_class_is_tested() -> None:
    assert [known.name for known in KNOWN] == [case.name for case in CASES]
    assert not {known.model for known in KNOWN} & {name for refusal in REFUSALS for name in refusal.models}


@pytest.mark.parametrize(
    ("name", "verb", "reason"),
    [
        (name, "is not gazed yet" if refusal.possible else "cannot be gazed", refusal.reason)
        for refusal in REFUSALS
        for name in refusal.models
    ],
)
def test_models_that_are_not_gazed_say_why(name: str, verb: str, reason: str) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    kind = getattr(transformers, name)
    with pytest.raises(ValueError) as refused:
        GazedVideoLM(kind.__new__(kind), SimpleNamespace())
    assert str(refused.value) == f"{name} {verb} before its tower: {reason}; see docs/mllm.md"


def test_no_refusal_names_a_class_that_nobody_has() -> None:
    names = [name for refusal in REFUSALS for name in refusal.models]
    missing = [name for name in names if not hasattr(transformers, name)]
    assert len(missing) < len(names) / 2, missing


class _Unusual(transformers.Qwen3VLForConditionalGeneration):
    """A subclass may change anything."""


@pytest.mark.parametrize(("model", "message"), [
    (nn.Linear(2, 2), "does not know torch.nn.modules.linear.Linear; it knows Qwen2-VL, Qwen2.5-VL"),
    (_Unusual.__new__(_Unusual), "does not know tests.mllm.test_support._Unusual"),
])  # fmt: skip
def test_what_is_not_known_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GazedVideoLM(model, SimpleNamespace())
