"""Photos as RGB pixels, upright: the one reader of still pictures, for gazing and for training.

Pillow reads them, since it says when a file is cut short and knows every mode. A camera's EXIF orientation is applied,
16 bits become 8, CMYK and palettes become RGB, and transparency is dropped, as OpenCV and torchvision do.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from autogaze.media.clip_files import VideoError, shown

_STILLS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")
_FILM_OF_JPEGS = b"\xff\xd9\xff\xd8\xff"  # the end of one picture, the start of the next
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
# Pillow's many kinds of damage, with those of the libraries under it; SyntaxError is its own word for a broken header
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
_SEARCHED = 64 << 20  # bytes of a JPEG in which a second one is looked for


def is_photo(path: Path) -> bool:
    """Whether a file is one still picture, by its content: a JPEG, PNG, WebP, BMP, TIFF or AVIF that does not move."""
    with path.open("rb") as file:
        head = file.read(1 << 12)
        if head.startswith(b"\xff\xd8\xff"):
            return b"MPF\0" in head or _FILM_OF_JPEGS not in head + file.read(_SEARCHED)
    if head.startswith(b"\x89PNG"):
        return b"acTL" not in head[: head.find(b"IDAT")]  # an animation says so before its pixels
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return not _moves(head)
    if head[4:12] == b"ftypavif" or _is_heic(head):
        return True
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return b"avis" not in _brands(head)  # a general brand, then what it is: a picture or a film
    return head.startswith(_STILLS)


def is_webp_animation(path: Path) -> bool:
    """Whether a file is an animated WebP: a video that FFmpeg cannot decode."""
    with path.open("rb") as file:
        return _moves(file.read(24))


def read_animation(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    """Frames (H, W, 3) uint8 RGB of an animated WebP with their times in seconds, from 0.

    Raises:
        VideoError: if it is damaged.
    """
    name, time_s = shown(path), 0.0
    try:
        with Image.open(path) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
                yield np.array(image.convert("RGB")), time_s
                time_s += max(1, int(image.info.get("duration", 0) or 40)) / 1000
    except _DAMAGE as error:
        raise VideoError(f"{name} is a damaged animation: {error}") from error


def read_photo(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright.

    Raises:
        VideoError: if it is damaged, too large, or of a kind that Pillow cannot read.
    """
    name = shown(path)
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if _is_heic(head):
        raise VideoError(f"{name} is a HEIC photo, which cannot be read; convert it to JPEG or PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                pages = getattr(image, "n_frames", 1)
                if image.format == "TIFF" and pages > 1:
                    raise VideoError(f"{name} is a TIFF of {pages} pages; save them as a video, or one a file")
                if image.mode == "I" and image.format == "TIFF":
                    raise VideoError(f"{name} is a photo of 32-bit numbers; convert it to 8 or 16 bits")
                return np.array(_rgb(ImageOps.exif_transpose(image), name))
    except VideoError:
        raise
    except UnidentifiedImageError as error:
        raise VideoError(f"{name} is not a photo that can be read: damaged, or of an unknown kind") from error
    except Image.DecompressionBombError as error:
        raise VideoError(f"{name} is too large a photo: {error}") from error
    except _DAMAGE as error:
        raise VideoError(f"{name} is a damaged photo: {error}") from error


def photo_format(path: Path) -> str:
    """Its format's name in small letters, such as "jpeg"."""
    with Image.open(path) as image:
        return (image.format or "photo").lower()


def _brands(head: bytes) -> list[bytes]:
    """What the head of an MP4 or of a picture of this family says that it is."""
    return [head[k : k + 4] for k in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)]


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS and not {b"avif", b"avis"} & {*_brands(head)}


def _moves(head: bytes) -> bool:
    """Whether a WebP's header says that it is an animation."""
    return head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip at 255 instead of scaling
        grey = np.asarray(image.convert("I"))
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise VideoError(f"{name} is a photo of 32-bit numbers; convert it to 8 or 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise VideoError(f"{name} is a photo of floating-point numbers; convert it to 8 or 16 bits")
    return image.convert("RGB")
