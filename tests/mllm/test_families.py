"""Every family on tiny random models: all units kept is the dense model, and some kept are the dense prompt's."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from autogaze.mllm import GazedVideoLM, Prompt  # noqa: E402
from tests.mllm.mllm_models import CASES, Case, built, clip, gazed, settings, talk  # noqa: E402

each_family = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def dense_inputs(case: Case, messages: list, **extra: Any) -> Any:
    _, processor = built(case)
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs={"padding": True, **settings(case), **extra},
    )  # fmt: skip


@torch.no_grad()
def logits(case: Case, prompt: Prompt) -> Tensor:
    return built(case)[0](**prompt.model_inputs()).logits


@each_family
@torch.no_grad()
def test_all_units_kept_is_the_dense_model(case: Case) -> None:
    model, processor = built(case)
    messages = talk(clip(case))
    dense = dense_inputs(case, messages)
    whole = GazedVideoLM(model, processor)
    prompt = whole.prepare(messages, **settings(case))
    assert prompt.ratio == 1
    assert torch.equal(prompt.input_ids, dense["input_ids"])
    within = 0.0 if case.exact else 1e-5  # a mean of patches may be summed in another order
    torch.testing.assert_close(logits(case, prompt), model(**dense).logits, atol=within, rtol=0)
    words = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(whole.generate(prompt, **words), model.generate(**dense, **words))


@each_family
@torch.no_grad()
def test_all_units_kept_in_bfloat16_is_within_its_own_noise(case: Case) -> None:
    model, processor = built(case)
    rough, messages = deepcopy(model).to(torch.bfloat16), talk(clip(case))
    dense = dense_inputs(case, messages)
    noise = (rough(**dense).logits.float() - model(**dense).logits).abs().mean()
    prompt = GazedVideoLM(rough, processor).prepare(messages, **settings(case))
    apart = (rough(**prompt.model_inputs()).logits.float() - rough(**dense).logits.float()).abs().mean()
    assert 0 < noise < 0.1 and apart <= noise


@each_family
def test_the_tower_runs_on_what_is_kept_and_kept_tokens_have_dense_positions(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = talk(clip(case))
    prompt = gazed(case).prepare(messages, **settings(case))
    whole = GazedVideoLM(*built(case)).prepare(messages, **settings(case))
    (kept,), (every,) = prompt.kept, whole.kept
    assert kept.shape == every.shape and bool(kept[0].all()) and bool(kept.flatten(1).any(1).all())
    assert 0.2 < prompt.ratio < 0.6
    assert sum(len(part.tokens) for part in prompt.videos) == int(kept.sum())
    stays = torch.ones(whole.input_ids.shape[1], dtype=torch.bool)
    token = gazed(case).family.placeholder()
    stays[whole.input_ids[0] == token] = kept.flatten()
    assert torch.equal(prompt.input_ids[0], whole.input_ids[0][stays])
    axes = whole.position_ids[..., stays]
    if axes.ndim == 3:  # M-RoPE: the first axis counts the prompt's own tokens
        assert torch.equal(prompt.position_ids[1:], axes[1:])
        assert torch.equal(prompt.position_ids[0, 0], torch.arange(int(stays.sum())))
    else:
        assert torch.equal(prompt.position_ids, axes)


@each_family
@torch.no_grad()
def test_prompts_of_different_lengths_side_by_side_are_what_each_is_alone(case: Case) -> None:
    lm = gazed(case)
    videos = [clip(case, seed=1), clip(case, seed=2)]
    talks = [talk(videos[0]), talk(videos[1], "what happens then and then")]
    both = lm.prepare(talks, **settings(case, 2))
    alone = [lm.prepare(messages, **settings(case)) for messages in talks]
    together = logits(case, both)
    for row, single in enumerate(alone):
        length = single.input_ids.shape[1]
        assert torch.equal(both.input_ids[row, -length:], single.input_ids[0])
        assert torch.equal(both.position_ids[..., row, -length:], single.position_ids[..., 0, :])
        torch.testing.assert_close(together[row, -length:], logits(case, single)[0], atol=2e-5, rtol=1e-4)


@each_family
def test_beam_search_and_caches_give_what_they_give_with_everything_recomputed(case: Case) -> None:
    lm = gazed(case)
    prompt = lm.prepare(talk(clip(case)), **settings(case))
    never = [token for token in (lm.family.placeholder(), lm.family.placeholder("image")) if token is not None]
    words = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": never}  # a placeholder would want a feature
    assert torch.equal(lm.generate(prompt, **words), lm.generate(prompt, **words, use_cache=False))
    beams = lm.generate(prompt, **words, num_beams=3)
    assert torch.equal(beams, lm.generate(prompt, **words, num_beams=3))
    assert torch.equal(lm.generate(prompt, **words), lm.generate(prompt, **words))  # beams changed nothing


@each_family
def test_beam_search_side_by_side_is_beam_search_alone(case: Case) -> None:
    lm = gazed(case)
    talks = [talk(clip(case, seed=1)), talk(clip(case, seed=2), "what then")]
    words = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    both = lm.prepare(talks, **settings(case, 2))
    together = lm.decode(both, lm.generate(both, **words))
    for text, messages in zip(together, talks, strict=True):
        single = lm.prepare(messages, **settings(case))
        assert text == lm.decode(single, lm.generate(single, **words))[0]
