"""FFmpeg's decoder, through PyAV: every frame of a file with its time, or an error that names the file.

Why not OpenCV, which is a dependency all the same (it draws, resizes and opens cameras): its `grab()` says False both
at the end and at damage, so that a hole in a file reads as a shorter clip; it does not pass on that a packet or a frame
is corrupt; its frame count is duration x rate where a container has no count, its times start at the stream's and not
at the first frame's, it ignores the BT.2020 matrix, and a name that is not UTF-8 ends the process. On files without
these it gives the same pixels: both wheels carry FFmpeg, and colours are converted here with the same filter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from autogaze.media.clip_files import VideoError, is_url, locate, shown
from autogaze.media.container import begins_in_the_middle

URL_SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "hls", "mms")
SECONDS_TO_ANSWER = 15.0  # that a server has to open a stream, and then to send the next packet
MOST_FPS = 1000.0
ENTERED_ANYWHERE = {"mpegts", "mpeg", "h264", "hevc", "m4v", "mpegvideo", "mpegtsraw", "rtsp", "rtp", "hls", "sdp"}
ONE_FRAME_A_PACKET = {"h264", "hevc", "av1", "vp9", "mjpeg", "ffv1", "prores", "gif", "png", "apng"}
TIMED = {"mov", "matroska", "flv", "mpegts"}  # containers in which a packet carries the time of its own frame
STRICT_CODECS = {"mjpeg", "mpeg1video", "mpeg2video"}  # whose decoders paint over damage, if not asked to give up
_TO_CONVERT = "try converting it to H.264 in MP4"


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file, as far as its header and its first frame tell."""

    path: Path | str  # a string for an address
    width: int  # pixels, upright
    height: int
    fps: float  # frames a second, the average where it varies
    frames: int | None  # as the container says, which may be wrong; None if it does not. See `count_frames`
    codec: str

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.fps

    @property
    def name(self) -> str:
        """The file's name, printable."""
        return shown(str(self.path).rstrip("/").rsplit("/", 1)[-1] if isinstance(self.path, str) else self.path.name)


class Decoder:
    """An open file or address. Iterate over `frames`; use it as a context.

    Args:
        source: a file, or an address that begins with one of URL_SCHEMES.
        threads: that decode; None: as many as there are cores.

    Raises:
        FileNotFoundError, VideoError: as `locate`; also a VideoError if it is no video, or in an unknown codec.
    """

    def __init__(self, source: str | os.PathLike[str], threads: int | None = None) -> None:
        self.source = _address(source) if is_url(source) else locate(source)
        self.name = shown(self.source)
        self.container = _open(self.source, self.name)
        try:
            self.stream = self._pick_stream()
            context = self.stream.codec_context
            context.thread_type = "AUTO"
            context.thread_count = threads or 0
            if self.codec in STRICT_CODECS:
                context.options = {"err_detect": "explode"}
        except BaseException:
            self.container.close()
            raise
        self.form = self.container.format.name
        self.may_begin_late = self.form.split(",")[0] in ENTERED_ANYWHERE or isinstance(self.source, str)
        if isinstance(self.source, Path) and begins_in_the_middle(self.source, self.form):
            self.container.close()
            raise VideoError(f"{self.name} is damaged: its beginning is missing; copy or download it again")
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    @property
    def codec(self) -> str:
        return str(self.stream.codec_context.codec.name)

    @property
    def coding(self) -> str:
        """What the stream is coded in, whoever decodes it: "av1" for libdav1d."""
        return str(self.stream.codec_context.codec.canonical_name)

    @property
    def tick(self) -> Fraction:
        """Seconds a unit of the stream's clock."""
        return self.stream.time_base or Fraction(1, av.time_base)  # a video stream that was opened has one

    @property
    def fps(self) -> float:
        """Frames a second, 25 where the file says nothing that can be."""
        # FFmpeg's guess is the average, but where a container counts fields (H.264 in AVI) the codec's own rate.
        rates = (self.stream.guessed_rate, self.stream.average_rate, self.stream.base_rate)
        likely = next((float(rate) for rate in rates if rate and 0 < rate <= MOST_FPS), None)
        if likely is None and self.stream.frames > 1 and self.stream.duration:  # beyond belief, or true
            return float(self.stream.frames / (self.stream.duration * self.tick))
        return likely or 25.0

    @property
    def listed(self) -> int | None:
        """The number of frames that the container says it holds, by a count or by its duration."""
        if self.stream.frames > 0:
            return int(self.stream.frames)
        if self.stream.duration and self.stream.time_base:
            return max(1, round(float(self.stream.duration * self.stream.time_base) * self.fps))
        return max(1, round(self.container.duration / av.time_base * self.fps)) if self.container.duration else None

    def packets(self) -> Iterator[av.Packet]:
        """The stream's packets that hold something, in the order of the file."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except av.FFmpegError as error:
            raise self.damaged(error) from error

    def frames(self, entered: bool = False) -> Iterator[av.VideoFrame]:
        """Decoded frames in the order they are shown.

        Args:
            entered: after `seek`: what cannot be decoded at the start is passed over, as it is in a stream that can be
                entered anywhere.

        Raises:
            VideoError: at damage.
        """
        begun, late = False, entered or self.may_begin_late
        joint, owed = _Joint(), _Owed(self)
        try:
            for packet in self.container.demux(self.stream):
                if joint.is_damage(packet, begun):
                    raise self.damaged()
                owed.add(packet)
                try:
                    decoded = packet.decode()
                except av.FFmpegError as error:
                    if begun or not late:
                        raise self.damaged(error) from error
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        if begun or not late:
                            raise self.damaged()
                        continue
                    begun = True
                    owed.settle(frame)
                    yield frame
        except av.FFmpegError as error:
            raise self.damaged(error) from error
        if owed.is_damage():
            raise self.damaged()
        if not begun:
            raise VideoError(
                f"{self.name}: no frame can be decoded (codec {self.codec!r}): a damaged file, or a codec that is not "
                f"there; {_TO_CONVERT}"
            )

    def seek(self, seconds: Fraction | float) -> None:
        """Go to a frame that can be decoded alone, at or before a time on the stream's clock, if the file allows."""
        try:
            self.container.seek(int(seconds / self.tick), stream=self.stream)
        except av.FFmpegError as error:
            raise self.damaged(error) from error

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright: a read-only view of the converted frame.

        Raises:
            VideoError: if its size differs from that of the frames before.
        """
        converted = self._reformatter.reformat(frame, format="rgb24", interpolation="BICUBIC")
        plane = converted.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : frame.height, : frame.width * 3
        ]
        picture = upright(rows.reshape(frame.height, frame.width, 3), frame)
        self._size = self._size or picture.shape[:2]
        if picture.shape[:2] != self._size:
            raise VideoError(
                f"{self.name}: the picture changes from {self._size[1]} x {self._size[0]} to "
                f"{picture.shape[1]} x {picture.shape[0]} pixels; cut the video there"
            )
        return picture

    def damaged(self, error: Exception | None = None) -> VideoError:
        reason = f" ({error.strerror or error})" if isinstance(error, OSError) else ""
        if isinstance(self.source, str):
            return VideoError(f"{self.name}: the stream broke off{reason}")
        return VideoError(f"{self.name} is damaged: not every frame can be decoded{reason}; copy or download it again")

    def _pick_stream(self) -> av.VideoStream:
        streams = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise VideoError(f"{self.name} is not a video: it holds no moving pictures")
        best = self.container.streams.best("video")
        stream = best if best in streams else streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.name}: there is no decoder for its codec; {_TO_CONVERT}")
        return stream


class _Joint:
    """Tells a hole from the place where two recordings of a stream were joined: there the clock starts again.

    At both a transport stream's counters jump, for which the demuxer marks a packet; that and the jump of the clock
    may be a few packets apart.
    """

    NEAR = 4  # packets

    def __init__(self) -> None:
        self.last: int | None = None  # when the last packet is decoded
        self.waiting = 0  # packets until a mark counts as damage
        self.since = self.NEAR  # packets since the clock went back

    def is_damage(self, packet: av.Packet, begun: bool) -> bool:
        """Whether what is marked is damage, as of this packet; the last one is empty."""
        back = None not in (packet.dts, self.last) and packet.dts < self.last  # type: ignore[operator]
        self.since = 0 if back else self.since + 1
        self.last = self.last if packet.dts is None else packet.dts
        if self.since < self.NEAR:
            self.waiting = 0
            return False
        overdue = self.waiting == 1 or (self.waiting > 0 and not packet.size)
        self.waiting = max(0, self.waiting - 1)
        if packet.is_corrupt and begun and not self.waiting:
            self.waiting = self.NEAR
        return overdue


class _Owed:
    """Times of packets whose frame did not come: decoders pass over some damaged frames without a word.

    What is shown before the first frame that came may be missing: it needs frames that a cut took away.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.counts = decoder.coding in ONE_FRAME_A_PACKET and decoder.form.split(",")[0] in TIMED
        self.times: set[int] = set()
        self.first: int | None = None
        self.last = -(1 << 63)  # when the last packet is decoded

    def add(self, packet: av.Packet) -> None:
        if self.counts and packet.size and packet.pts is not None and not packet.is_discard:
            self.times.add(packet.pts)
        if packet.dts is not None:
            self.counts &= packet.dts >= self.last  # recordings that were joined start their clocks again
            self.last = packet.dts

    def settle(self, frame: av.VideoFrame) -> None:
        self.first = frame.pts if self.first is None else self.first
        self.counts &= frame.pts is not None and not frame.interlaced_frame  # a packet may be one field
        self.times.discard(frame.pts)  # type: ignore[arg-type]

    def is_damage(self) -> bool:
        return self.counts and self.first is not None and any(time > self.first for time in self.times)


def time_of(frame: av.VideoFrame) -> Fraction | None:
    """Seconds on the stream's own clock; None where the stream carries no times."""
    return None if frame.pts is None or frame.time_base is None else Fraction(frame.pts * frame.time_base)


def _address(source: str | os.PathLike[str]) -> str:
    address = os.fspath(source)
    scheme = address.split("://")[0].lower()
    if scheme not in URL_SCHEMES:
        raise VideoError(
            f"{address}: addresses of kind {scheme}:// cannot be opened; known are {', '.join(URL_SCHEMES)}"
        )
    return address


def _open(source: Path | str, name: str) -> av.container.InputContainer:
    file = source if isinstance(source, str) else os.path.abspath(source)  # no name is taken for a protocol
    timeout = SECONDS_TO_ANSWER if isinstance(source, str) else None
    try:
        return av.open(file, metadata_errors="replace", timeout=timeout)
    except av.FFmpegError as error:
        if isinstance(source, str):
            raise VideoError(f"{name} cannot be opened: {error.strerror}") from error
        if isinstance(error, PermissionError):
            raise
        raise VideoError(
            f"{name} is not a video that can be opened: a damaged file, another format, or a codec that is not there; "
            f"{_TO_CONVERT}"
        ) from error


def upright(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turned as the file asks for: a phone's rotation, in steps of 90 degrees, and mirror images."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame.side_data else None
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(np.int64)  # x' = a x + c y, y' = b x + d y
    if abs(b) + abs(c) > abs(a) + abs(d):  # the picture's rows become columns
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
