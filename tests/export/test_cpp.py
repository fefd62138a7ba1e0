"""The C++ library builds with the CMake and compiler that are here, passes its unit tests under sanitizers, reads what
Python writes and writes what Python writes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from autogaze.model import AutoGaze, AutoGazeConfig

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "autogaze" / "export" / "cpp"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cmake") is None or (shutil.which("c++") or shutil.which("g++")) is None:
        pytest.skip("needs cmake and a C++ compiler (Debian: cmake g++)")
    folder = tmp_path_factory.mktemp("cpp")
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug", "-DAUTOGAZE_SANITIZE=ON"],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stderr + done.stdout, done.stderr + done.stdout
        if command[1] == "-S":
            assert "autogaze_trt backends:" in done.stdout
            assert "TensorRT backend skipped: needs" in done.stdout or "backends: TensorRT" in done.stdout
    return folder


def test_python_and_cpp_know_the_same_formats() -> None:
    from autogaze.export.metadata import FORMAT, LARGEST, MOST_PATCHES

    header = (SOURCE / "src" / "metadata.hpp").read_text()
    values = dict(re.findall(r"constexpr int (k\w+) = ([^;]+);", header))
    assert (int(values["kFormat"]), values["kLargest"], values["kMostPatches"]) == (FORMAT, "1 << 15", "1 << 20")
    assert (LARGEST, MOST_PATCHES) == (1 << 15, 1 << 20)
    assert f"Format version **{FORMAT}**" in (ROOT / "docs" / "formats.md").read_text()


def test_the_unit_tests_pass(build: Path) -> None:
    done = subprocess.run(["ctest", "--test-dir", str(build), "--output-on-failure"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "100% tests passed" in done.stdout


def test_an_installed_library_is_found_and_links(build: Path, tmp_path: Path) -> None:
    """As a project of somebody else finds it: by find_package, in a prefix of any name."""
    prefix, project = tmp_path / "prefix", tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user CXX)\nfind_package(autogaze 1.0 REQUIRED)\n"
        "add_executable(user user.cpp)\ntarget_compile_features(user PRIVATE cxx_std_17)\n"
        "target_link_options(user PRIVATE -fsanitize=address,undefined)\n"  # as the library was built here
        "target_link_libraries(user PRIVATE autogaze::autogaze_trt)\n"
    )
    (project / "user.cpp").write_text(
        "#include <autogaze_trt.hpp>\n#include <cstdio>\nint main() {\n"
        '  try { autogaze::Engine engine("gone.onnx"); }\n'
        '  catch (const autogaze::Error& error) { std::printf("%s: %s\\n", autogaze_version(), error.what()); }\n}\n'
    )
    for command in (
        ["cmake", "--install", str(build), "--prefix", str(prefix)],
        ["cmake", "-S", str(project), "-B", str(project / "build"), f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", str(project / "build")],
        [str(project / "build" / "user")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1.") and "gone.onnx" in done.stdout


def test_headers_of_one_version_and_a_library_of_another_are_refused(tmp_path: Path) -> None:
    """And a root that is given is the only place looked at."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake (Debian: cmake)")
    for folder in ("include", "lib"):
        (tmp_path / "trt" / folder).mkdir(parents=True)
    (tmp_path / "trt" / "include" / "NvInfer.h").touch()
    (tmp_path / "trt" / "include" / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 11 // major\n")
    (tmp_path / "trt" / "lib" / "libnvinfer.so.10.3.0").touch()
    (tmp_path / "trt" / "lib" / "libnvinfer.so").symlink_to("libnvinfer.so.10.3.0")
    command = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path / "build"), f"-DTensorRT_ROOT={tmp_path / 'trt'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = " ".join(done.stderr.split())
    assert done.returncode != 0 and "is of version 11" in words and "libnvinfer.so.10.3.0 of 10" in words, done.stderr
    for library in (tmp_path / "trt" / "lib").iterdir():
        library.unlink()
    done = subprocess.run([*command, "--fresh"], capture_output=True, text=True, check=False)
    assert "TensorRT backend skipped: needs" in done.stdout


@pytest.mark.parametrize("canvas", [False, True])
def test_cpp_reads_the_engine_files_that_python_writes(canvas: bool, build: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the export extra: onnx")
    from autogaze.export.engine_file import EngineFacts, write_engine
    from autogaze.export.graph.forms import input_specs, output_specs
    from autogaze.export.onnx import ExportOptions

    model = AutoGaze(replace(AutoGazeConfig.tiny(), residual_map=canvas))
    metadata = ExportOptions(gazing_ratio=0.1, batch=(1, 3), input_size=(90, 131)).metadata(model)
    built = EngineFacts("tensorrt", "0.0", "sm_00", False, input_specs(model, metadata), output_specs(model, metadata))
    path = tmp_path / "gaze.engine"
    write_engine(path, bytes(range(256)) * 3, metadata, built)
    done = subprocess.run(
        [str(build / "autogaze_tests")], env=os.environ | {"AUTOGAZE_ENGINE_FILE": str(path)}, cwd=tmp_path,
        capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    tensors = f"{8 + canvas} inputs, {9 + canvas} outputs"
    facts = f"265 patches, budget 26, batch 1 to 3, uint8 90 x 131, {tensors}"
    assert f"gaze.engine: plan 768, {facts}" in done.stdout


def test_python_and_cpp_write_the_same_summary(build: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """gaze.json of the command, and of the library for the same ids; seconds, runner and file hash differ."""
    from autogaze.cli.main import main
    from autogaze.core.gaze_file import load_gaze
    from autogaze.media.scenes import render_scene
    from autogaze.media.video import write_video

    write_video(tmp_path / 'a "clip".mp4', render_scene(0, 5, (96, 128)), 30000 / 1001)
    assert main(["gaze", str(tmp_path / 'a "clip".mp4'), "--checkpoint", str(tiny_checkpoint), "--gazing-ratio", "0.1",
                 "--task-loss-requirement", "0.7", "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    ours, gazes = json.loads((tmp_path / "out" / "gaze.json").read_text()), load_gaze(tmp_path / "out" / "gaze.npz")
    video, grid, start = ours["video"], ours["grid"], 0
    lines = [video["name"], video["codec"], f"{video['width']} {video['height']} {video['fps']!r}",
             f"{video['frames_in_container']} {grid['patch_size']} {len(grid['scales'])}",
             " ".join(map(str, grid["scales"]))]  # fmt: skip
    for count in gazes.counts.tolist():
        lines.append(" ".join(map(str, [count, *gazes.ids[start : start + count].tolist()])))
        start += count
    path = tmp_path / "gazes.txt"
    path.write_text("\n".join(lines) + "\n")
    done = subprocess.run([str(build / "autogaze_tests")], env=os.environ | {"AUTOGAZE_GAZES": str(path)}, cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "gazes.txt.json").read_text())
    assert list(theirs) == list(ours) and theirs["seconds"].keys() == ours["seconds"].keys()
    for summary in (ours, theirs):
        summary["seconds"] = summary["model"]["checkpoint"] = None
        summary["video"].pop("hash", None)  # of the file's bytes, which the library does not see
    assert theirs == ours and sum(theirs["counts"]) == start > 0
