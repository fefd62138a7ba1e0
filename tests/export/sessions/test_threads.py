"""One `Engine` may be shared by threads: every call gives what it gives alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch

from autogaze.core.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig

pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")

from autogaze.export.onnx import ExportOptions, export_onnx  # noqa: E402
from autogaze.export.runner import Engine  # noqa: E402

THREADS, ROUNDS = 4, 6


def at_once(work: Callable[[int], Gaze]) -> list[list[Gaze]]:
    """The gazes of each thread, round by round; a round begins when all are there."""
    barrier = Barrier(THREADS)

    def serve(index: int) -> list[Gaze]:
        results = []
        for _ in range(ROUNDS):
            barrier.wait()
            results.append(work(index))
        return results

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(serve, range(THREADS)))


@pytest.fixture(scope="module", params=["frame", "clip"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.manual_seed(0)
    model = AutoGaze(replace(AutoGazeConfig.tiny(), residual_map=True, max_num_frames=4)).eval()
    path = tmp_path_factory.mktemp("threads") / "gaze.onnx"
    export_onnx(model, path, ExportOptions(clip=request.param == "clip", gazing_ratio=0.05))
    return Engine.load(path, "cpu", threads=1)


def test_calls_from_several_threads_do_not_mix_clips(engine: Engine) -> None:
    side = engine.metadata.input_size[0]
    clips = [torch.randn(1 + index % 2, 3, 3, side, side) for index in range(THREADS)]  # batches of two sizes
    alone = [engine.generate(clip) for clip in clips]
    for index, results in enumerate(at_once(lambda index: engine.generate(clips[index]))):
        for gaze in results:
            assert torch.equal(gaze.ids, alone[index].ids) and torch.equal(gaze.chosen, alone[index].chosen)


def test_streams_of_several_threads_do_not_mix(engine: Engine) -> None:
    if engine.metadata.kind == "clip":
        pytest.skip("a clip file has no streams")
    side = engine.metadata.input_size[0]
    video = torch.randn(THREADS, ROUNDS, 3, side, side)
    streams, frames = [engine.stream() for _ in range(THREADS)], [iter(clip) for clip in video]
    results = at_once(lambda index: streams[index].step(next(frames[index])[None]))
    for index in range(THREADS):
        expected = engine.generate(video[index : index + 1])
        assert torch.equal(torch.cat([gaze.ids for gaze in results[index]], 1), expected.ids)


def test_frames_that_several_threads_give_one_stream_are_worked_through_one_by_one(engine: Engine) -> None:
    """Equal frames, so that their order does not matter: what comes out is one stream's gazes, in some order."""
    if engine.metadata.kind == "clip":
        pytest.skip("a clip file has no streams")
    frame = torch.randn(1, 3, *engine.metadata.input_size)
    stream = engine.stream()
    got = sorted(tuple(gaze.ids.flatten().tolist()) for one in at_once(lambda _: stream.step(frame)) for gaze in one)
    again = engine.stream()
    expected = sorted(tuple(again.step(frame).ids.flatten().tolist()) for _ in range(THREADS * ROUNDS))
    assert got == expected and len(set(got)) > 1
