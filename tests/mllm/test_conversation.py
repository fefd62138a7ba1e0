"""Several turns about one video, streaming, and the rest of a prompt: images, time stamps, positions in time."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import DynamicCache, TextIteratorStreamer  # noqa: E402

from autogaze.mllm import GazedVideoLM  # noqa: E402
from autogaze.model import AutoGaze  # noqa: E402
from tests.mllm.mllm_models import BY_NAME, CASES, Case, built, clip, gazed, settings, talk  # noqa: E402

each_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WITH_IMAGES = [case for case in CASES if case.name != "SmolVLM2"]  # whose processor takes one kind at a time
with_images = pytest.mark.parametrize("case", WITH_IMAGES, ids=lambda case: case.name)


def turns(video: Any) -> list[dict[str, Any]]:
    """A question about a video, an answer, and another question."""
    return [
        *talk(video),
        {"role": "assistant", "content": "a b c"},
        {"role": "user", "content": [{"type": "text", "text": "and then"}]},
    ]


def forbid_gazing_and_encoding(lm: GazedVideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a known video was gazed at or encoded again")

    monkeypatch.setattr(AutoGaze, "generate", refuse)
    monkeypatch.setattr(lm.family, "encode", refuse)


@each_family
def test_a_second_turn_neither_gazes_nor_encodes_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, video = gazed(case), clip(case)
    first = lm.prepare(talk(video), **settings(case))
    afresh = lm.prepare(turns(video), **settings(case))
    forbid_gazing_and_encoding(lm, monkeypatch)
    second = lm.prepare(turns(video), previous=first, **settings(case))
    assert second.videos[0] is first.videos[0]
    assert torch.equal(second.input_ids, afresh.input_ids) and torch.equal(second.position_ids, afresh.position_ids)
    assert all(torch.equal(a, b) for a, b in zip(second.kept, afresh.kept, strict=True))
    assert torch.equal(second.input_ids[:, : first.input_ids.shape[1]], first.input_ids)


@each_family
@torch.no_grad()
def test_the_cache_of_one_turn_serves_the_next(case: Case) -> None:
    lm, video, cache = gazed(case), clip(case), DynamicCache(config=built(case)[0].config.get_text_config())
    first = lm.prepare(talk(video), **settings(case))
    lm.generate(first, past_key_values=cache, max_new_tokens=1, do_sample=False)
    assert cache.get_seq_length() == first.input_ids.shape[1]
    second = lm.prepare(turns(video), previous=first, **settings(case))
    words = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    continued, afresh = lm.generate(second, past_key_values=cache, **words), lm.generate(second, **words)
    assert torch.equal(continued.sequences, afresh.sequences)
    for a, b in zip(continued.logits, afresh.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@each_family
def test_only_a_video_of_the_new_turn_is_gazed_at(case: Case) -> None:
    lm, videos = gazed(case), [clip(case, seed=1), clip(case, seed=2)]
    first = lm.prepare(talk(videos[0]), **settings(case))
    messages = [*talk(videos[0]), {"role": "assistant", "content": "a"}, *talk(videos[1], "and this")]
    second, afresh = (lm.prepare(messages, previous=old, **settings(case, 2)) for old in (first, None))
    assert second.videos[0] is first.videos[0] and second.prompt_of == (0, 0)
    for a, b in zip(second.videos, afresh.videos, strict=True):
        torch.testing.assert_close(a.tokens, b.tokens, atol=1e-5, rtol=1e-4)
    assert torch.equal(second.input_ids, afresh.input_ids)


def test_another_video_in_the_place_of_a_known_one_is_refused() -> None:
    case = BY_NAME["Qwen3-VL"]
    lm = gazed(case)
    first = lm.prepare(talk(clip(case)), **settings(case))
    with pytest.raises(ValueError, match=r"video 0 .* 3 x 4 x 6 units in the previous prompt, now 5 x 4 x 6"):
        lm.prepare(talk(clip(case, frames=10)), previous=first, **settings(case, frames=10))


@each_family
def test_text_streams_as_the_model_itself_streams_it(case: Case) -> None:
    lm = gazed(case)
    prompt = lm.prepare(talk(clip(case)), **settings(case))
    words = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    streamer = TextIteratorStreamer(built(case)[1].tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600)
    thread = Thread(target=lm.generate, args=(prompt,), kwargs={**words, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed.split() == lm.decode(prompt, lm.generate(prompt, **words))[0].split()


def picture(case: Case) -> Tensor:
    return clip(case, seed=5, frames=1)[0]


def with_picture(case: Case) -> list[dict[str, Any]]:
    """A picture, a video, and a picture behind it, in one prompt."""
    seen = {"type": "image", "image": picture(case)}
    (message,) = talk(clip(case))
    return [{**message, "content": [seen, *message["content"], seen]}]


@with_images
@torch.no_grad()
def test_images_in_the_prompt_are_left_alone(case: Case) -> None:
    messages = with_picture(case)
    whole = GazedVideoLM(*built(case)).prepare(messages, **settings(case))
    model, processor = built(case)
    dense = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs=settings(case),
    )  # fmt: skip
    assert torch.equal(whole.input_ids, dense["input_ids"])
    torch.testing.assert_close(model(**whole.model_inputs()).logits, model(**dense).logits, atol=2e-5, rtol=1e-4)
    prompt = gazed(case).prepare(messages, **settings(case))
    assert prompt.ratio < 1
    dropped = whole.visual_tokens - prompt.visual_tokens
    assert prompt.input_ids.shape[1] == whole.input_ids.shape[1] - dropped  # all of it the video's
    images = [part.tokens for part in prompt.features["image"] if part not in prompt.videos]
    expected = [part.tokens for part in whole.features["image"] if part not in whole.videos]
    assert len(images) >= 2 and all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
    assert model(**prompt.model_inputs()).logits.isfinite().all()


def test_images_beside_a_video_are_refused_where_the_processor_drops_one_of_them() -> None:
    case = BY_NAME["SmolVLM2"]
    with pytest.raises(ValueError, match="SmolVLM"):
        gazed(case).prepare(with_picture(case), **settings(case))


@with_images
@torch.no_grad()
def test_a_prompt_of_images_alone_is_the_dense_prompt(case: Case) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(case)}, {"type": "text", "text": "a"}]}]
    model, processor = built(case)
    dense = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    prompt = gazed(case).prepare(messages)
    assert prompt.kept == () and prompt.ratio == 1
    torch.testing.assert_close(model(**prompt.model_inputs()).logits, model(**dense).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_text_alone_is_the_dense_prompt() -> None:
    case = BY_NAME["Qwen2.5-VL"]
    model, processor = built(case)
    messages = [{"role": "user", "content": [{"type": "text", "text": "what happens"}]}]
    dense = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True,
                                          return_tensors="pt")  # fmt: skip
    prompt = gazed(case).prepare(messages)
    torch.testing.assert_close(model(**prompt.model_inputs()).logits, model(**dense).logits, atol=2e-5, rtol=1e-4)


def stamps(text: str) -> list[str]:
    """The text before every frame pair."""
    return [part.split("<|vision_start|>")[0].split("<")[-1] for part in text.split("<|vision_end|>")[:-1]]


def test_time_stamps_between_frames_are_the_dense_ones() -> None:
    case = BY_NAME["Qwen3-VL"]
    model, processor = built(case)
    dense = processor.apply_chat_template(
        talk(clip(case)), tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=settings(case)
    )
    prompt = gazed(case).prepare(talk(clip(case)), **settings(case))
    written, expected = (stamps(processor.tokenizer.decode(ids[0])) for ids in (prompt.input_ids, dense["input_ids"]))
    assert written == expected
    seconds = [float(stamp.split("sec")[0].replace(" ", "")) for stamp in written]
    assert seconds == pytest.approx([0.2, 1.2, 2.2], abs=0.06)  # middles of pairs of frames at two a second, rounded


@pytest.mark.parametrize("fps", [1.0, 4.0])
def test_positions_in_time_follow_the_seconds_of_a_frame_pair(fps: float) -> None:
    case = BY_NAME["Qwen2.5-VL"]
    given = settings(case)
    given["video_metadata"][0] |= {"fps": fps, "duration": case.frames / fps}
    prompt = gazed(case).prepare(talk(clip(case)), **given)
    whole = GazedVideoLM(*built(case)).prepare(talk(clip(case)), **given)
    at = prompt.input_ids[0] == gazed(case).family.placeholder()
    times = prompt.position_ids[1, 0][at].unique()
    per_second = built(case)[0].config.vision_config.tokens_per_second
    every = whole.position_ids[1, 0][whole.input_ids[0] == gazed(case).family.placeholder()].unique()
    assert torch.equal(times, every) and len(times) == 3
    assert times.diff().tolist() == [2 / fps * per_second] * 2
