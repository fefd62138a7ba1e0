"""torchcodec gives the frames, times and errors that the usual decoder gives; and colours are those that were coded."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from autogaze.media.source import open_source
from autogaze.media.torchcodec import TorchcodecSource
from autogaze.media.video import VideoError, read_video, write_video
from tests.media.make_video import encode, scene
from tests.mp4_edit import rotate_clockwise

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40), (128, 128, 128), (250, 10, 250))
MATRICES = {"bt601": (6, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}


def bars(path: Path, matrix: str, full: bool) -> None:
    """Bars of known colours, turned into YUV here and coded without loss of note."""
    number, red, blue = MATRICES[matrix]
    r, g, b = np.repeat(np.array(COLOURS, float), 32, 0)[None].repeat(64, 0).transpose(2, 0, 1) / 255
    luma = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([luma, (b - luma) / 2 / (1 - blue), (r - luma) / 2 / (1 - red)])
    scale, zero = ((255, 255, 255), (0, 128, 128)) if full else ((219, 224, 224), (16, 128, 128))
    coded = [(p * s + z).round().clip(0, 255).astype(np.uint8) for p, s, z in zip(planes, scale, zero, strict=True)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = luma.shape[1], luma.shape[0], "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        for _ in range(3):
            picture = av.VideoFrame(luma.shape[1], luma.shape[0], "yuv420p")
            for plane, pixels in zip(picture.planes, (coded[0], coded[1][::2, ::2], coded[2][::2, ::2]), strict=True):
                rows = np.zeros((pixels.shape[0], plane.line_size), np.uint8)
                rows[:, : pixels.shape[1]] = pixels
                plane.update(rows.tobytes())
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))


def seen(path: Path) -> np.ndarray:
    return read_video(path, 1).frames[0][32, 16::32].astype(int)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_the_matrix_and_the_range_of_a_file_are_honoured(matrix: str, full: bool, tmp_path: Path) -> None:
    bars(tmp_path / "bars.mp4", matrix, full)
    assert np.abs(seen(tmp_path / "bars.mp4") - np.array(COLOURS)).max() <= 4


def source(path: Path) -> TorchcodecSource:
    try:
        return TorchcodecSource(path)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_both_decoders_give_the_same_colours(matrix: str, full: bool, tmp_path: Path) -> None:
    bars(tmp_path / "bars.mp4", matrix, full)
    (chunk,) = source(tmp_path / "bars.mp4").chunks()
    assert np.abs(chunk.frames.astype(int) - read_video(tmp_path / "bars.mp4").frames).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts"])
def test_both_decoders_give_the_same_frames_and_times(suffix: str, tmp_path: Path) -> None:
    encode(tmp_path / f"clip{suffix}", scene(40), times_s=None)
    chunks = list(source(tmp_path / f"clip{suffix}").chunks())
    read = read_video(tmp_path / f"clip{suffix}")
    assert np.abs(np.concatenate([c.frames for c in chunks]).astype(int) - read.frames).max() <= 2
    assert np.allclose(np.concatenate([c.times_s for c in chunks]), read.times_s, atol=1e-3)


def test_both_decoders_turn_a_phones_video(tmp_path: Path) -> None:
    write_video(tmp_path / "turn.mp4", scene(4))
    rotate_clockwise(tmp_path / "turn.mp4")
    (chunk,) = source(tmp_path / "turn.mp4").chunks()
    assert np.abs(chunk.frames.astype(int) - read_video(tmp_path / "turn.mp4").frames).max() <= 2


def test_both_decoders_refuse_the_same_files(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", scene(50))
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "hole.mp4").write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
    (tmp_path / "cut.mp4").write_bytes(data[:-900])
    (tmp_path / "text.mp4").write_text("words\n" * 99)
    for name, words in (("hole.mp4", "damaged"), ("cut.mp4", "truncated"), ("text.mp4", "it is text")):
        for chunks in (source(tmp_path / name).chunks(), open_source(tmp_path / name).chunks()):
            with pytest.raises(VideoError, match=f"{name} is .*{words}|{name} is {words}"):
                list(chunks)
