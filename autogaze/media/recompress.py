"""A second compression: frames through H.264 and back, as a clip looks after it was uploaded somewhere."""

from __future__ import annotations

import io

import av
import numpy as np


def recompress(frames: np.ndarray, crf: int, fps: int = 30) -> np.ndarray:
    """Encode frames with x264 at a constant rate factor, and decode them again.

    Args:
        frames: (T, H, W, 3) uint8 RGB; an odd last row or column is left as it is.
        crf: 0 (no loss) to 51; 23 is x264's default.
        fps: of the video in between; the encoder's rate control looks at it.

    Returns:
        (T, H, W, 3) uint8.
    """
    result, file = frames.copy(), io.BytesIO()
    height, width = (length - length % 2 for length in frames.shape[1:3])  # 4:2:0 halves both
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=fps, options={"crf": str(crf), "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames[:, :height, :width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    file.seek(0)
    with av.open(file) as decoded:
        for t, picture in enumerate(decoded.decode(video=0)):
            result[t, :height, :width] = picture.to_ndarray(format="rgb24")
    return result
