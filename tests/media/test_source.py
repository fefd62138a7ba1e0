"""Sources give the same frames whatever they are; reading ahead changes nothing but the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.media.source import ArraySource, FileSource, FrameSource, open_source, prefetch
from autogaze.media.video import VideoError, read_video, write_video
from tests.media.make_video import scene


def counting(made: list[int], most: int = 1000) -> Iterator[int]:
    for k in range(most):
        made.append(k)
        yield k


def test_prefetched_items_are_the_items_in_order() -> None:
    assert list(prefetch(range(100))) == list(range(100)) and list(prefetch([])) == []


def test_reading_ahead_is_bounded_and_ends_with_its_user() -> None:
    made: list[int] = []
    before = threading.active_count()
    items = prefetch(counting(made), ahead=3)
    assert next(items) == 0
    time.sleep(0.5)
    assert len(made) <= 1 + 3 + 1
    items.close()
    assert threading.active_count() == before


def test_what_the_thread_raises_is_raised_where_the_items_are_used() -> None:
    def breaking() -> Iterator[int]:
        yield 1
        raise VideoError("damaged in the middle")

    items = prefetch(breaking())
    assert next(items) == 1
    with pytest.raises(VideoError, match="in the middle"):
        next(items)


def test_files_and_arrays_give_the_same_chunks(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", scene(40), 20)
    read = read_video(tmp_path / "v.mp4")
    sources: list[FrameSource] = [FileSource(tmp_path / "v.mp4"), ArraySource(read.frames, 20)]
    for source in sources:
        chunks = list(source.chunks())
        assert [chunk.first for chunk in chunks] == [0, 16, 32]
        assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), read.frames)
        assert np.allclose(np.concatenate([chunk.times_s for chunk in chunks]), read.times_s)


def test_the_source_that_fits_is_opened(tmp_path: Path) -> None:
    assert isinstance(open_source("x.mp4"), FileSource)
    assert isinstance(open_source(torch.zeros(1, 4, 4, 3).byte()), ArraySource)
    with pytest.raises(VideoError, match="no camera 97"):
        next(open_source(97).chunks())
    with pytest.raises(ValueError, match="a source is a file"):
        open_source(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoder must be one of"):
        open_source("x.mp4", decoder="magic")
    with pytest.raises(FileNotFoundError):
        next(open_source(tmp_path / "nowhere.mp4").chunks())
