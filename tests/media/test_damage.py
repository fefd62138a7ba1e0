"""A file that is whole is read whole; one that is not is refused by name, in every kind of container."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from autogaze.media.video import VideoError, count_frames, probe, read_chunks, read_frames, read_video
from tests.media.make_video import KINDS, encode, scene

FRAMES = 50


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, frames = tmp_path_factory.mktemp("whole"), scene(FRAMES)
    return {suffix: encode(folder / f"clip{suffix}", frames).read_bytes() for suffix in KINDS}


@pytest.mark.parametrize("suffix", KINDS)
def test_a_whole_file_gives_every_frame_counted_and_by_number(
    suffix: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / f"clip{suffix}").write_bytes(whole[suffix])
    read = read_video(tmp_path / f"clip{suffix}", threads=1)
    assert len(read) == FRAMES == count_frames(tmp_path / f"clip{suffix}")
    assert read.times_s[0] == 0 and np.median(np.diff(read.times_s)) == pytest.approx(0.04, abs=2e-3)
    numbers = [0, 7, 24, 24, FRAMES - 1]
    some = read_frames(tmp_path / f"clip{suffix}", numbers)
    assert np.array_equal(some.frames, read.frames[numbers]) and np.allclose(some.times_s, read.times_s[numbers])


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("threads", [1, None])
def test_zeros_in_the_middle_are_refused(
    suffix: str, threads: int | None, whole: dict[str, bytes], tmp_path: Path
) -> None:
    data, path = whole[suffix], tmp_path / f"hole{suffix}"
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) // 8) + data[len(data) // 2 + len(data) // 8 :])
    with pytest.raises(VideoError, match=f"hole{suffix} is (damaged|truncated)"):
        read_video(path, threads=threads)


@pytest.mark.parametrize("suffix", KINDS)
def test_zeros_at_the_end_are_refused(suffix: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """As of a download that stopped, whose file got its size at the start."""
    data, path = whole[suffix], tmp_path / f"part{suffix}"
    kept = len(data) // 188 * 6 // 10 * 188  # whole packets of a transport stream
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    with pytest.raises(VideoError, match=f"part{suffix} is (damaged|truncated|unfinished|not a video)"):
        read_video(path)


@pytest.mark.parametrize("pixels", ["yuv422p", "yuv444p10le", "gray", "gray16le", "yuv411p"])
def test_uncompressed_pixels_of_every_form_are_counted(pixels: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.y4m"), "w", options={"strict": "-1"}) as file:
        stream = file.add_stream("wrapped_avframe", 25)
        stream.width, stream.height, stream.pix_fmt = 33, 17, pixels
        for frame in scene(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame[:17, :33].copy(), format="rgb24")))
        file.mux(stream.encode(None))
    assert len(read_video(tmp_path / "a.y4m")) == 3


def _cut(suffix: str, data: bytes) -> int:
    """Where a file is cut: inside a frame. Bare H.264 knows no lengths: between two frames nothing is seen."""
    if suffix != ".h264":
        return len(data) * 6 // 10 + 1
    starts = [i for i in range(len(data)) if data.startswith(b"\0\0\1", i)] + [len(data)]
    begin, end = max(zip(starts[1:-1], starts[2:], strict=True), key=lambda part: part[1] - part[0])
    return (begin + end) // 2


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_cut_at_its_end_is_refused(suffix: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[suffix][: _cut(suffix, whole[suffix])])
    with pytest.raises(VideoError, match=f"cut{suffix} is (damaged|truncated|not a video)"):
        read_video(path)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_without_its_beginning_is_refused(suffix: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"late{suffix}"
    path.write_bytes(whole[suffix][len(whole[suffix]) * 3 // 10 + 1 :])
    with pytest.raises(VideoError, match=f"late{suffix}(: no frame| is (damaged|truncated|not a video))"):
        read_video(path)


def test_a_stream_that_was_joined_late_begins_at_its_first_picture(whole: dict[str, bytes], tmp_path: Path) -> None:
    packets = len(whole[".ts"]) // 188
    (tmp_path / "joined.ts").write_bytes(whole[".ts"][packets // 3 * 188 :])
    assert 10 < len(read_video(tmp_path / "joined.ts")) < FRAMES


@pytest.mark.parametrize("name", ["clip.avi", "clip.jpg", "CLIP.MP4", "clip", "clip.mp4."])
def test_what_a_file_is_its_content_says(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(whole[".mp4"])
    assert len(read_video(tmp_path / name)) == FRAMES


def test_a_sound_track_or_a_pause_does_not_make_frames(tmp_path: Path) -> None:
    times = [*(k / 25 for k in range(20)), *(30 + k / 25 for k in range(20))]
    encode(tmp_path / "pause.mkv", scene(40), times_s=times)
    assert (probe(tmp_path / "pause.mkv").frames or 0) > 500 and count_frames(tmp_path / "pause.mkv") == 40
    assert np.allclose(read_video(tmp_path / "pause.mkv").times_s, times, atol=2e-3)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi"])
@pytest.mark.parametrize("fps", [1 / 60, 0.2, 1, 240, 1000])
def test_slow_and_fast_rates_keep_every_frame_and_its_time(suffix: str, fps: float, tmp_path: Path) -> None:
    levels = np.arange(20, dtype=np.uint8)[:, None, None, None] * 10 + 5
    frames = np.broadcast_to(levels, (20, 48, 64, 3)).copy()
    if suffix == ".ts" and fps < 0.2:
        pytest.skip("the muxer waits for seconds, not minutes")
    encode(tmp_path / f"clip{suffix}", frames, fps=fps)
    read = read_video(tmp_path / f"clip{suffix}")
    assert [round((frame.mean() - 5) / 10) for frame in read.frames] == list(range(20))
    assert read.times_s[0] == 0 and np.all(np.diff(read.times_s) > 0)


def test_a_rate_beyond_belief_is_right_where_the_count_says_so_too(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mp4", scene(20), fps=5000)
    assert probe(tmp_path / "clip.mp4").fps == pytest.approx(5000, rel=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_far_frames_are_found_by_seeking(suffix: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (300, 4, 4, 3), np.uint8).repeat(12, 1).repeat(12, 2)
    encode(tmp_path / f"clip{suffix}", frames)
    read = read_video(tmp_path / f"clip{suffix}")
    numbers = [150, 151, 250, 299]
    assert np.array_equal(read_frames(tmp_path / f"clip{suffix}", numbers).frames, read.frames[numbers])
    later = next(read_chunks(tmp_path / f"clip{suffix}", 4, start_s=6.0))
    assert np.array_equal(later.frames, read.frames[150:154]) and np.allclose(later.times_s, read.times_s[150:154])
    with pytest.raises(VideoError, match="fewer than 301 frames"):
        read_frames(tmp_path / f"clip{suffix}", [300])


def test_recordings_joined_end_to_end_are_read_to_the_end(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "joined.ts").write_bytes(whole[".ts"] * 2)
    read = read_video(tmp_path / "joined.ts")
    assert len(read) == 2 * FRAMES and np.all(np.diff(read.times_s) > 0)


def test_an_animated_webp_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.full((32, 48, 3), 40 * k, np.uint8)) for k in range(6)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=100, lossless=True)
    read = read_video(tmp_path / "a.webp")
    assert [frame.mean() for frame in read.frames] == [40 * k for k in range(6)]
    assert np.allclose(read.times_s, np.arange(6) / 10)
    info = probe(tmp_path / "a.webp")
    assert (info.frames, info.width, info.fps) == (6, 48, 10) and count_frames(tmp_path / "a.webp") == 6
    assert np.array_equal(read_frames(tmp_path / "a.webp", [4]).frames, read.frames[4:5])


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_small_damage_is_refused_or_loses_no_frame(suffix: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Decoders pass over a frame that is damaged badly enough, and over lost packets, without a word."""
    data, path, random = whole[suffix], tmp_path / f"a{suffix}", np.random.default_rng(1)
    refused = 0
    for start in random.integers(len(data) // 4, len(data) - 400, 12):
        path.write_bytes(data[:start] + bytes(300) + data[start + 300 :])
        try:
            assert len(read_video(path, threads=1)) == FRAMES
        except VideoError:
            refused += 1
    assert refused


@pytest.mark.parametrize(("suffix", "codec", "form", "pixels"), [
    (".wmv", "wmv2", "asf", "yuv420p"),
    (".mxf", "mpeg2video", "mxf", "yuv422p"),
])  # fmt: skip
def test_holes_between_packets_are_seen(suffix: str, codec: str, form: str, pixels: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    with av.open(str(path), "w", format=form) as file:
        stream = file.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        for frame in scene(20):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    assert len(read_video(path)) == 20
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] + bytes(4000) + data[len(data) // 3 + 4000 :])
    with pytest.raises(VideoError, match=f"clip{suffix} is damaged"):
        read_video(path)


def test_an_index_that_was_overwritten_is_damage(whole: dict[str, bytes], tmp_path: Path) -> None:
    data, path = whole[".mp4"], tmp_path / "a.mp4"
    at = data.index(b"stbl") + 4
    path.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    with pytest.raises(VideoError, match="a.mp4 is damaged at byte"):
        probe(path)
