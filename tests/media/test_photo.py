"""Photos: upright, in 8 bits of RGB, whatever their header says; the same for gazing and for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autogaze.media.video import VideoError, read_video
from autogaze.training.data.index import index_folder


def photo() -> Image.Image:
    """Wide, red in its top left corner and blue below."""
    pixels = np.full((40, 80, 3), 90, np.uint8)
    pixels[:20, :40], pixels[20:, :40] = (250, 10, 10), (10, 10, 250)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_upright(orientation: int, tmp_path: Path) -> None:
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # what turns the upright photo into what the camera stored
    stored = photo() if orientation == 1 else photo().transpose(Image.Transpose[turns[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    seen = read_video(tmp_path / "photo.jpg").frames
    assert seen.shape == (1, 40, 80, 3) and np.allclose(seen[0, 5:15, 5:35], [250, 10, 10], atol=12)
    (file,) = index_folder(tmp_path).files
    assert (file.kind, file.width, file.height) == ("photo", 80, 40)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    else:
        image = photo().quantize() if mode == "P" else photo().convert(mode)
    image.save(tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png"))
    seen = read_video(next(tmp_path.iterdir())).frames[0].astype(int)
    expected = photo() if mode in ("RGBA", "CMYK", "P") else photo().convert("1" if mode == "1" else "L")
    assert np.abs(seen - np.asarray(expected.convert("RGB"), int)).mean() < 6


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".PNG", ".mp4", ""])
def test_a_photo_is_one_frame_under_any_name(suffix: str, tmp_path: Path) -> None:
    photo().save(tmp_path / f"photo{suffix}", format=None if suffix not in (".mp4", "") else "PNG")
    assert read_video(tmp_path / f"photo{suffix}").frames.shape == (1, 40, 80, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_a_photo_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=f"photo{suffix} is"):
        read_video(path)


def test_what_moves_is_no_photo_and_heic_is_named(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((32, 32, 3), 40 * k, np.uint8)) for k in range(5)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert len(read_video(tmp_path / "moving.png")) == 5
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(VideoError, match="pages.tif is a TIFF of 5 pages"):
        read_video(tmp_path / "pages.tif")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12) + b"\0\0\0\x08free")
    with pytest.raises(VideoError, match="phone.heic is a HEIC photo"):
        read_video(tmp_path / "phone.heic")


def test_damaged_avif_and_numbers_without_a_range_are_one_line(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.avif")
    data = bytearray((tmp_path / "a.avif").read_bytes())
    data[-60:-20] = bytes(40)
    (tmp_path / "a.avif").write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.avif is a damaged photo"):
        read_video(tmp_path / "a.avif")
    Image.fromarray(np.full((8, 8), 200, np.int32)).save(tmp_path / "b.tif")  # would be black as one of 16 bits
    with pytest.raises(VideoError, match=r"b\.tif is a photo of 32-bit numbers"):
        read_video(tmp_path / "b.tif")


def test_an_avif_under_a_general_brand_is_no_heic(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    assert data[8:12] == b"avif" and b"avif" in data[16:32]
    (tmp_path / "a.avif").write_bytes(data[:8] + b"mif1" + data[12:])
    assert read_video(tmp_path / "a.avif").frames.shape == (1, 40, 80, 3)
