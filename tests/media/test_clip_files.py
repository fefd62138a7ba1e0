"""Names and folders: what is taken for a clip, what is refused, and that nothing waits for ever."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autogaze.media.clip_files import find_clips, is_url, listed_clips, shown
from autogaze.media.video import VideoError, probe, read_video, write_video
from tests.media.make_video import scene


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, scene(5))
    return path


ODD_NAMES = (
    *(
        b"caf\xe9.mp4",
        b"two\nlines.mp4",
        b"%03d.mp4",
        b"-i.mp4",
        b"a b.mp4",
        b"x" * 251 + b".mp4",
        b"dot.",
        b"file:x.mp4",
    ),
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_read(name: bytes, clip: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copy(clip, path)
    assert len(read_video(path)) == 5 == probe(path).frames
    assert len(shown(path).splitlines()) == 1 and shown(path).encode()


def test_a_folder_is_searched_with_its_links_once_and_without_what_we_wrote(clip: Path, tmp_path: Path) -> None:
    for name in ("data/A.MP4", "data/sub/b.mp4", "elsewhere/c.mp4", "data/.hidden/d.mp4", "data/out/overlay.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "data/out/gaze.json").write_text("{}")
    shutil.copy(clip, tmp_path / "data/overlay.mp4")  # the user's own
    (tmp_path / "data/notes.txt").write_text("no clip")
    (tmp_path / "data/folder.mp4").mkdir()
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in find_clips(tmp_path / "data")]
    assert found == [
        "A.MP4",
        "dangling.mp4",
        "linked/c.mp4",
        "overlay.mp4",
        "sub/b.mp4",
    ]  # commands name the dangling one


def test_a_list_of_clips_is_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeff# of day 1\nb.mp4\r\n\n/data/a.mp4\nb.mp4\n".encode())
    assert listed_clips(tmp_path / "list.txt") == [Path("/data/a.mp4"), tmp_path / "b.mp4"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\0\0")
    with pytest.raises(ValueError, match=r"list.txt is not UTF-8 text"):
        listed_clips(tmp_path / "list.txt")


def test_names_and_contents_that_stand_for_no_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the name of the video is empty"):
        probe("")
    (tmp_path / "a.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(VideoError, match=r"a.mp4 is a Git LFS pointer .*git lfs pull"):
        probe(tmp_path / "a.mp4")


def test_a_pipe_is_refused_and_its_writer_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    writer = subprocess.Popen([sys.executable, "-c", f"open({str(tmp_path / 'pipe.mp4')!r}, 'wb').close()"])
    with pytest.raises(VideoError, match="pipe.mp4 is a pipe"):
        while writer.poll() is None:  # until the writer has come, and been let go
            probe(tmp_path / "pipe.mp4") if writer.poll() is None else None
        probe(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="/dev/null is a device"):
        probe("/dev/null")
    os.remove(tmp_path / "pipe.mp4")
    writer.kill()
    writer.wait()


def test_dangling_links_say_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("b.mp4")
    with pytest.raises(FileNotFoundError, match=r"a.mp4 is a link to b.mp4, which is not there"):
        probe(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    with pytest.raises(VideoError, match=r"a.mp4 is a link that leads back to itself"):
        probe(tmp_path / "a.mp4")


def test_the_home_folder_is_known(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(clip.parent))
    assert probe("~/clip.mp4").frames == 5


def test_addresses_are_opened_or_refused_as_such() -> None:
    assert is_url("http://a/b.mp4") and not is_url("concat:x.mp4") and not is_url("c:/x.mp4")
    with pytest.raises(VideoError, match="s3://bucket/x.mp4: addresses of kind s3:// cannot be opened"):
        probe("s3://bucket/x.mp4")
    with pytest.raises(VideoError, match="http://127.0.0.1:9/x.mp4 cannot be opened"):
        probe("http://127.0.0.1:9/x.mp4")


def test_folders_that_may_not_be_read_are_named(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "secret").mkdir(parents=True)
    shutil.copy(clip, tmp_path / "data" / "a.mp4")
    real, closed = os.scandir, [tmp_path / "data" / "secret"]

    def scandir(path: str) -> object:  # permissions do not stop the tests' user where it is root
        if Path(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_clips(tmp_path / "data") == [tmp_path / "data" / "a.mp4"]
    assert capsys.readouterr().err == f"skipped {tmp_path / 'data' / 'secret'}: Permission denied\n"
    closed.append(tmp_path / "data")
    with pytest.raises(PermissionError, match="data"):
        find_clips(tmp_path / "data")
