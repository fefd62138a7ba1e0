"""One model, one stream, one selector, used by several threads: each gets what it gets alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from autogaze import AutoGaze, GazedViT, PatchGrid
from autogaze.core.gaze import Gaze
from autogaze.model import AutoGazeConfig
from autogaze.selectors import SELECTORS, make_selector
from autogaze.vit.graphs import GraphedViT

T = TypeVar("T")
THREADS, ROUNDS = 4, 3
SMALL = AutoGazeConfig(
    scales=(16, 32, 64), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, head_dim=16, intermediate_size=96,
    num_multi_token_pred=4, max_num_frames=3, gazing_ratio=0.5, task_loss_requirement=None)  # fmt: skip


def at_once(work: Callable[[int], T]) -> list[list[T]]:
    """The results of each thread, round by round; a round begins when all are there."""
    barrier = threading.Barrier(THREADS)

    def serve(index: int) -> list[T]:
        return [(barrier.wait(60), work(index))[1] for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(serve, range(THREADS)))


def clips(side: int = 64, frames: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1 + k % 2, frames, 3, side, side, generator=generator) * 2 - 1 for k in range(THREADS)]


@pytest.fixture(scope="module", params=["reference", "auto"])
def model(request: pytest.FixtureRequest) -> AutoGaze:
    torch.manual_seed(0)
    model = AutoGaze(replace(SMALL, residual_map=True)).eval()
    model.decoding = request.param
    return model


@pytest.mark.parametrize("grid", [None, PatchGrid((32, 64, 128), 16)], ids=["own grid", "tiles"])
def test_calls_of_a_model_do_not_mix_clips(model: AutoGaze, grid: PatchGrid | None) -> None:
    videos = clips(64 if grid is None else 128)
    alone = [model.generate(video, 0.4, grid=grid) for video in videos]
    for index, results in enumerate(at_once(lambda k: model.generate(videos[k], 0.4, grid=grid))):
        assert all(torch.equal(gaze.ids, alone[index].ids) for gaze in results)


def test_streams_of_a_model_do_not_mix(model: AutoGaze) -> None:
    videos = clips(frames=ROUNDS)
    streams = [model.stream(0.4, batch=len(video)) for video in videos]
    results = at_once(lambda k: streams[k].step(videos[k][:, streams[k].frame]))
    for video, gazes in zip(videos, results, strict=True):
        assert torch.equal(torch.cat([gaze.ids for gaze in gazes], 1), model.generate(video, 0.4).ids)


def test_frames_that_threads_give_one_stream_are_worked_through_one_by_one(model: AutoGaze) -> None:
    """Equal frames, so that their order does not matter: what comes out is one stream's gazes, in some order."""
    frame, stream, again = clips()[0][:, 0], model.stream(0.2), model.stream(0.2)
    got = sorted(tuple(gaze.ids.flatten().tolist()) for one in at_once(lambda _: stream.step(frame)) for gaze in one)
    assert got == sorted(tuple(again.step(frame).ids.flatten().tolist()) for _ in range(THREADS * ROUNDS))
    assert stream.frame == THREADS * ROUNDS


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_calls_of_a_selector_do_not_mix_clips(name: str) -> None:
    select, videos = make_selector(name, PatchGrid((32, 64), 16)), clips()

    def look(k: int) -> Tensor:
        return select(videos[k], 0.3, torch.Generator().manual_seed(k)).patch_mask()

    alone = [look(k) for k in range(THREADS)]
    for index, results in enumerate(at_once(look)):
        assert all(torch.equal(mask, alone[index]) for mask in results)


def test_calls_of_a_gazed_vit_do_not_mix_clips() -> None:
    timm = pytest.importorskip("timm", reason="needs the vit extra: timm")
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=32, num_heads=2, depth=2, num_classes=0)
    gazed, videos = GazedViT(vit).eval(), clips(224, 2)
    grid = PatchGrid()
    gazes = [make_selector("random", grid)(video, 0.1 + 0.1 * k) for k, video in enumerate(videos)]
    with torch.no_grad():
        alone = [gazed(video, gaze).features for video, gaze in zip(videos, gazes, strict=True)]

    @torch.no_grad()
    def encode(k: int) -> Tensor:
        return gazed(videos[k], gazes[k]).features

    for index, results in enumerate(at_once(encode)):
        assert all(torch.allclose(features, alone[index], atol=1e-5) for features in results)


def test_a_graphed_vit_refuses_a_second_thread_while_the_first_is_there() -> None:
    """Its memory is one; a GPU is not needed to refuse."""
    graphed = GraphedViT.__new__(GraphedViT)
    nothing = torch.zeros(1, 1, 1, dtype=torch.bool)
    graphed._video, graphed._gaze = torch.empty(0), Gaze(nothing.long(), nothing, PatchGrid())

    def call() -> tuple[type[Exception], str]:
        try:
            graphed(torch.empty(1, 1), graphed._gaze)
        except Exception as error:
            return type(error), str(error)
        raise AssertionError

    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        assert pool.submit(call).result()[0] is ValueError
        kind, words = call()
        assert kind is RuntimeError and "called by thread 'first_0'" in words and "one for each thread" in words
    assert call()[0] is ValueError  # the first is gone: let through to the next check
