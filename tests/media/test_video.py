"""Reading and writing video: every odd but honest file works, every broken one is refused by name."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from autogaze.media.video import VideoError, open_writer, probe, read_chunks, read_video, write_video
from tests.mp4_edit import forget_codec, rotate_clockwise, vary_frame_rate


def ramp(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness tells their index: 8 levels apart."""
    levels = (np.arange(frames, dtype=np.uint8) * 8)[:, None, None, None]
    return np.broadcast_to(levels, (frames, height, width, 3)).copy()


def indices(frames: np.ndarray) -> list[int]:
    return [round(level / 8) for level in frames.mean((1, 2, 3))]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", ramp(30), fps=10)
    return tmp_path / "clip.mp4"


def test_what_is_written_is_read_frame_by_frame(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.frames, info.seconds) == (64, 48, 10, 30, 3)
    read = read_video(clip)
    assert indices(read.frames) == list(range(30))
    assert np.allclose(read.times_s, np.arange(30) / 10)


def test_colours_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((4, 32, 32, 3), np.uint8)
    red[..., 0] = 200
    write_video(tmp_path / "red.mp4", red)
    assert np.allclose(read_video(tmp_path / "red.mp4").frames.mean((0, 1, 2)), [200, 0, 0], atol=8)


@pytest.mark.parametrize("size", [1, 7, 30, 100])
def test_chunks_join_to_the_whole(clip: Path, size: int) -> None:
    chunks = list(read_chunks(clip, size))
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert [chunk.first for chunk in chunks] == list(range(0, 30, size))
    assert indices(np.concatenate([chunk.frames for chunk in chunks])) == list(range(30))


@pytest.mark.parametrize(
    "start_s, stride, expected",
    [(0.0, 3, [0, 3, 6]), (0.5, 1, [5, 6, 7]), (2.05, 1, [21, 22, 23]), (1.9, 4, [19, 23, 27]), (2.9, 1, [29])],
)
def test_seeking_lands_on_the_frame_of_that_time(clip: Path, start_s: float, stride: int, expected: list[int]) -> None:
    assert indices(read_video(clip, 3, start_s, stride).frames) == expected


def test_seeking_past_the_end_is_an_error(clip: Path) -> None:
    with pytest.raises(VideoError, match="no frame at 9 s"):
        read_video(clip, start_s=9)


@pytest.mark.parametrize("frames, height, width", [(1, 48, 64), (3, 33, 47), (2, 1, 1), (2, 16, 640)])
def test_one_frame_and_odd_sizes(tmp_path: Path, frames: int, height: int, width: int) -> None:
    write_video(tmp_path / "odd.mp4", ramp(frames, height, width))
    read = read_video(tmp_path / "odd.mp4").frames
    assert read.shape == (frames, height + height % 2, width + width % 2, 3)


def test_a_rotated_phone_video_comes_upright(clip: Path) -> None:
    before = read_video(clip, 1).frames[0].shape
    rotate_clockwise(clip)
    info = probe(clip)
    assert (info.height, info.width) == (before[1], before[0]) == read_video(clip, 1).frames[0].shape[:2]


def test_rotation_turns_clockwise(tmp_path: Path) -> None:
    frame = np.zeros((2, 64, 96, 3), np.uint8)
    frame[:, :32] = 255  # bright on top -> bright on the right
    write_video(tmp_path / "turn.mp4", frame)
    rotate_clockwise(tmp_path / "turn.mp4")
    turned = read_video(tmp_path / "turn.mp4").frames[0]
    assert turned[:, 40:].mean() > 240 and turned[:, :24].mean() < 15


def test_a_variable_frame_rate_keeps_its_times(clip: Path) -> None:
    vary_frame_rate(clip, [(10, 0.1), (20, 0.3)])
    read = read_video(clip)
    assert indices(read.frames) == list(range(30))
    assert np.allclose(np.diff(read.times_s), [0.1] * 10 + [0.3] * 19, atol=1e-3)
    assert indices(read_video(clip, 2, start_s=4.0).frames) == [20, 21]


@pytest.mark.parametrize("suffix, codec", [(".avi", "MJPG"), (".webm", "VP80"), (".mkv", "mp4v"), (".mov", "mp4v")])
def test_other_containers_are_read_and_their_truncated_copies_refused(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 10.0, (64, 48))
    for frame in ramp(20):
        writer.write(frame)
    writer.release()
    assert indices(read_video(path).frames) == list(range(20))
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(VideoError, match="truncated|not a video|no frame"):
            read_video(path)


def test_a_truncated_streaming_mp4_is_refused_although_it_decodes(shared: Path, tmp_path: Path) -> None:
    clip = sorted((shared / "videos/train").glob("*.mp4"))[0]
    data = clip.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoError, match=r"cut.mp4 is truncated: \d+ bytes"):
        probe(tmp_path / "cut.mp4")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty.mp4", b"", "is empty"),
        ("words.mp4", b"hello\n" * 99, "it is text"),
        ("words.txt", b"hello\n" * 99, "it is text"),
        ("noise.mp4", bytes(range(256)) * 20, "not a video"),
        ("list.m3u8", b"#EXTM3U\nclip.mp4\n", "it is text"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message):
        probe(tmp_path / name)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such video"):
        probe(tmp_path / "nowhere.mp4")
    with pytest.raises(VideoError, match="is a directory"):
        probe(tmp_path)


def test_an_unknown_codec_is_named(clip: Path) -> None:
    forget_codec(clip)
    with pytest.raises(VideoError, match="codec"):
        probe(clip)


def test_names_with_odd_characters_work(clip: Path, tmp_path: Path) -> None:
    for name in ("a b %03d.mp4", "пример.mp4", "concat:x.mp4", "-i.mp4"):
        shutil.copy(clip, tmp_path / name)
        assert probe(tmp_path / name).frames == 30


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    for frames in (ramp(3).astype(float), ramp(3)[..., :2]):
        with pytest.raises(ValueError, match="uint8 RGB"), open_writer(tmp_path / "out.mp4", 25) as writer:
            writer.write(ramp(2))
            writer.write(frames)
    with pytest.raises(ValueError, match="no frames"), open_writer(tmp_path / "out.mp4", 25):
        pass
    with pytest.raises(ValueError, match="every frame"), open_writer(tmp_path / "out.mp4", 25) as writer:
        writer.write(ramp(2))
        writer.write(ramp(2, 20, 20))
    assert not list(tmp_path.iterdir())


def test_stderr_is_itself_again_after_many_threads_opened_videos(clip: Path) -> None:
    before = os.fstat(2)
    with ThreadPoolExecutor(16) as pool:
        assert all(info.frames == 30 for info in pool.map(probe, [clip] * 200))
    after = os.fstat(2)
    assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)


def test_reading_a_long_video_takes_constant_memory(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        path = tmp_path / f"{frames}.mp4"
        with open_writer(path, 25) as writer:
            for _ in range(frames):
                writer.write(np.zeros((1, 120, 160, 3), np.uint8))
        tracemalloc.start()
        assert sum(len(chunk) for chunk in read_chunks(path)) == frames
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(640) < 1.2 * peak(64)
