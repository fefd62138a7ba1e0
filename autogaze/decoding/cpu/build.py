"""The C++ of this folder, compiled for this processor on first use and kept in the user's cache folder.

No compiler, no writable cache, another system: `library` says why, and decoding goes on without. Several processes may
build at once: each compiles in a folder of its own and renames what it made into place. The name tells the source, the
flags and the processor apart, so that nothing is ever compiled twice or run on a processor that it was not made for.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")  # after $CXX
TIMEOUT_S = 300
TRUSTED = (0,)  # owners of a library that may be loaded, beside the user


def flags() -> list[str]:
    """Options of the compiler, for the processor that runs this."""
    target = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return [
        "-std=c++17",
        "-O3",
        target,
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fPIC",
        "-shared",
        "-pthread",
    ]


def processor() -> str:
    """A text that tells this processor from others: its name and its features."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    except (OSError, ValueError):
        facts = {}
    named = [value.strip() for key, value in facts.items() if key.strip() in ("model name", "flags", "Features")]
    return " ".join([platform.machine(), platform.processor(), *named])


def cache_folder() -> Path:
    """The folder of compiled libraries: $XDG_CACHE_HOME or the system's usual place."""
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError(f"there is no home folder: {error}") from error
    usual = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "autogaze"


def library_path() -> Path:
    """The file of this source, these flags and this processor, whether or not it is there yet."""
    key = hashlib.sha256(" ".join([*flags(), processor()]).encode())
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        key.update(source.name.encode() + source.read_bytes())
    return cache_folder() / f"decoder-{key.hexdigest()[:24]}.so"


def build(path: Path) -> None:
    """Compile into `path`.

    Raises:
        RuntimeError: if there is no compiler, it fails, or the folder cannot be written.
    """
    names = ([os.environ["CXX"]] if os.environ.get("CXX") else []) + list(COMPILERS)
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (looked for $CXX, " + ", ".join(COMPILERS) + ")")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            done = subprocess.run(
                [compiler, *flags(), str(SOURCES / "decoder.cpp"), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
                raise RuntimeError(f"{compiler} failed: {first}")
            made.chmod(0o755)
            os.replace(made, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"it could not be compiled into {path.parent}: {error}") from error


def load() -> ctypes.CDLL:
    """The library, compiled if need be.

    Raises:
        RuntimeError: with the reason.
    """
    if os.name != "posix":
        raise RuntimeError(f"it is built on POSIX systems only, not on {platform.system()}")
    try:
        path = library_path()
        if not path.exists():
            build(path)
        if path.stat().st_uid not in (*TRUSTED, os.getuid()):
            raise RuntimeError(f"{path} belongs to another user")
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"it cannot be loaded: {error}") from error
    address, count = ctypes.c_void_p, ctypes.c_int64
    native.autogaze_scratch.argtypes, native.autogaze_scratch.restype = [address], count
    native.autogaze_pass.argtypes, native.autogaze_pass.restype = [address], count
    native.autogaze_wait_shortly.argtypes, native.autogaze_wait_shortly.restype = [address, count], None
    native.autogaze_pack.argtypes = [address, count, count, ctypes.c_double, count, count, address]
    native.autogaze_pack.restype = None
    native.autogaze_choose.argtypes = [address] * 3 + [count] * 4 + [address] * 4
    native.autogaze_choose.restype = None
    native.autogaze_errors.argtypes, native.autogaze_errors.restype = [address, count, *[address] * 3], None
    native.autogaze_look.argtypes = [address, count, *[address] * 3, count, address]
    native.autogaze_look.restype = None
    return native


_lock = threading.Lock()
_loaded: list[ctypes.CDLL | str] = []


def library() -> ctypes.CDLL | str:
    """The library, or the reason why there is none; asked once a process."""
    with _lock:
        if not _loaded:
            try:
                _loaded.append(load())
            except RuntimeError as error:
                _loaded.append(str(error))
        return _loaded[0]


def loaded() -> ctypes.CDLL:
    """The library, where `library` has been asked whether there is one."""
    found = library()
    assert not isinstance(found, str), found
    return found
