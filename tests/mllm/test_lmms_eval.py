"""lmms-eval's model answers its requests; without that package, against its interface as documented."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from autogaze.media.video import write_video  # noqa: E402
from autogaze.mllm import GazedVideoLM  # noqa: E402
from tests.mllm.mllm_models import BY_NAME, built, clip, gaze  # noqa: E402


class _Base:
    """The part of `lmms_eval.api.model.lmms` that a model relies on."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    if find_spec("lmms_eval") is None:
        names = (
            "lmms_eval",
            "lmms_eval.api",
            "lmms_eval.api.model",
            "lmms_eval.models",
            "lmms_eval.models.registry_v2",
        )
        made = {name: ModuleType(name) for name in names}
        made["lmms_eval.api.model"].lmms = _Base  # type: ignore[attr-defined]
        made["lmms_eval.models.registry_v2"].ModelManifest = (  # type: ignore[attr-defined]
            lambda model_id, chat_class_path: SimpleNamespace(model_id=model_id, chat_class_path=chat_class_path)
        )
        for name, module in made.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "autogaze.mllm.lmms_eval", raising=False)
    return import_module("autogaze.mllm.lmms_eval")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny video LLM, a tiny gaze model and two videos as files."""
    home: Path = tmp_path_factory.mktemp("lmms")
    model, processor = built(BY_NAME["Qwen3-VL"])
    model.save_pretrained(home / "model")
    processor.save_pretrained(home / "model")
    gaze().save_pretrained(home / "gaze")
    for seed in (1, 2):
        write_video(home / f"{seed}.mp4", clip(BY_NAME["Qwen3-VL"], seed=seed, frames=8).movedim(1, -1).numpy(), fps=4)
    return {
        "model": str(home / "model"),
        "gaze": str(home / "gaze"),
        "1": str(home / "1.mp4"),
        "2": str(home / "2.mp4"),
    }


def request(number: int, **asked: Any) -> Any:
    """A request as lmms-eval's chat tasks make it."""
    return SimpleNamespace(args=("context", lambda document: document, asked, number, "task", "test"))


def question(path: str, words: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "url": path}, {"type": "text", "text": words}]}]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_requests_are_answered_in_order_from_gazed_videos(
    adapter: Any, folders: dict[str, str], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"gaze": folders["gaze"], "gazing_ratio": 0.2, "num_frames": 4, "device": "cpu"}
    model = adapter.GazedForLmmsEval(folders["model"], **options, batch_size=batch_size)
    assert model.is_simple is False
    documents = [question(folders["1"], "what happens"), question(folders["2"], "what then and then")]
    documents.append([{"role": "user", "content": [{"type": "text", "text": "a b"}]}])
    model.task_dict = {"task": {"test": documents}}
    seen: list[float] = []
    prepare = GazedVideoLM.prepare

    def noted(*args: Any, **given: Any) -> Any:
        prompt = prepare(*args, **given)
        seen.append(prompt.ratio)
        return prompt

    monkeypatch.setattr(GazedVideoLM, "prepare", noted)
    asked = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    answers = model.generate_until([request(0, **asked), request(1, **asked), request(2, max_new_tokens=3)])
    assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)
    assert seen[0] < 1 and seen[-1] == 1
    for number, talk in enumerate(documents[:2]):  # what the model's own calls give
        prompt = prepare(model.lm, adapter.to_chat(talk), num_frames=4, do_sample_frames=True)
        (text,) = model.lm.decode(prompt, model.lm.generate(prompt, max_new_tokens=5, do_sample=False))
        assert answers[number] == text.strip()


def test_the_page_gives_arguments_that_it_has(adapter: Any) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "mllm.md").read_text()
    (command,) = re.findall(r"lmms_eval --model (.*?)```", page, re.S)
    given = command.split("--model_args")[1].split()[0].split(",")
    names = {argument.split("=")[0] for argument in given}
    assert command.split()[0] == adapter.NAME and names <= set(signature(adapter.GazedForLmmsEval).parameters)


def test_without_a_gaze_model_it_is_the_dense_model(adapter: Any, folders: dict[str, str]) -> None:
    model = adapter.GazedForLmmsEval(folders["model"], gaze="None", num_frames=4, device="cpu")
    prompt = model.lm.prepare(adapter.to_chat(question(folders["1"], "a")), **model.settings)
    assert prompt.ratio == 1 and model.settings == {"num_frames": 4, "do_sample_frames": True}


def test_it_is_registered_under_its_name(adapter: Any) -> None:
    entry = adapter.manifest()
    module, _, name = entry.chat_class_path.rpartition(".")
    assert entry.model_id == "autogaze_video_lm" and hasattr(import_module(module), name)


@pytest.mark.parametrize(("part", "message"), [
    ({"type": "video", "url": "a.mp4", "start_time": 1.0}, "reads whole videos"),
    ({"type": "audio", "url": "a.wav"}, "takes text, images and videos, got 'audio'"),
])  # fmt: skip
def test_what_it_cannot_read_is_refused(adapter: Any, part: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.to_chat([{"role": "user", "content": [part]}])


def test_a_tasks_options_become_those_of_generate(adapter: Any) -> None:
    greedy = adapter.decoding({"temperature": 0, "top_p": 1.0, "max_new_tokens": 16})
    assert greedy["do_sample"] is False and greedy["max_new_tokens"] == 16
    assert adapter.decoding({"temperature": 0.7})["temperature"] == 0.7
    assert adapter.until("A. yes\n\nB", ["\n\n"]) == "A. yes" and adapter.until("A", "") == "A"
