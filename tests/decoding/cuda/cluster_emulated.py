"""Run by test_cluster.py in a process of its own: frames whose ids are decoded by the cluster kernel.

Everything runs on the CPU: prefills under Triton's interpreter, all that follows their logits through a library
(`cuda_emulator.cpp`). Arguments: "heads" or "map", for models without and with a residual map, and the library made for
them. Prints one JSON object a case: how what the cluster chose differs from what the reference chose.
"""

import copy
import ctypes
import json
import sys
from dataclasses import replace

import torch

import tests.decoding.cuda.interpreter  # noqa: F401, I001 - before Triton and what imports it
from autogaze import AutoGaze
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.cuda import cluster, kernels
from autogaze.decoding.cuda.buffers import Buffers
from autogaze.decoding.request import make_request
from autogaze.decoding.weights import fold
from autogaze.model import AutoGazeConfig


class Emulated:
    """The kernel compiled for the CPU."""

    launches = 0

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def __call__(self, arguments: cluster.Arguments, clips: int, table: int) -> None:
        Emulated.launches += 1
        self.library.launch(ctypes.byref(arguments), clips)


decoders: list[AutoGaze] = []  # the model that is compared now


def steps_of(buffers: Buffers) -> object:
    """The cluster's steps on float32 buffers, since the interpreter knows no bfloat16."""
    kept = ("embedding", "wt", "frequencies", "strength")
    weights = {name: buffers.weights[name] for name in kept}
    weights |= {name: weights[name].bfloat16() for name in ("embedding", "wt")}
    weights |= cluster.output_major(fold(decoders[-1].gaze_decoder), buffers.heads)

    def launch() -> None:
        half = copy.copy(buffers)
        half.keys, half.values, half.weights = buffers.keys.bfloat16(), buffers.values.bfloat16(), weights
        real_steps_of(half)  # launches the kernel once, to see whether a device takes it
        buffers.keys.copy_(half.keys)
        buffers.values.copy_(half.values)

    return launch


real_steps_of = cluster.steps_of
cluster.steps_of = steps_of


def model(window: int = 16, **parts: bool) -> AutoGaze:
    torch.manual_seed(0)
    config = replace(
        AutoGazeConfig.tiny(),
        scales=(32, 64),
        hidden_size=64,
        num_attention_heads=2,
        head_dim=32,
        intermediate_size=64,
        num_multi_token_pred=3,
        max_num_frames=window,
        **{"residual_map": False, **parts},
    )
    made = AutoGaze(config).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2)  # so that the best id wins clearly
    for parameter in made.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
    return made


def compare(name: str, gazer: AutoGaze, video: torch.Tensor, **request: object) -> torch.Tensor:
    decoders.append(gazer)
    asked = make_request(gazer.grid, *video.shape[:2], **request)
    gazer.decoding = "reference"
    plain = decode_clip(gazer, video, asked)
    gazer.decoding = "cuda"
    fast = decode_clip(gazer, video, asked)
    width = plain.ids.shape[-1]
    ids, chosen, loss = fast.ids[..., :width], fast.chosen[..., :width], fast.task_loss[..., :width]
    same = (plain.ids == ids)[plain.chosen].float()
    rest = (fast.ids[..., width:] == 0) & ~fast.chosen[..., width:] & fast.task_loss[..., width:].isnan()
    print(
        json.dumps(
            {
                "case": name,
                "launches": Emulated.launches,
                "ids": len(same),
                "equal_ids": float(same.mean()),
                "equal_chosen": torch.equal(plain.chosen, chosen),
                "equal_empty": torch.equal(plain.task_loss.isnan(), loss.isnan()) and bool(rest.all()),
                "loss_difference": float((plain.task_loss - loss).nan_to_num().abs().max()),
            }
        ),
        flush=True,
    )
    return plain.task_loss


def compare_first(gazer: AutoGaze, video: torch.Tensor, name: str) -> None:
    """Frames that end with their first group, and what the frames after them make of it."""
    compare(name + "stop at once", gazer, video[:1], gazing_ratio=1.0, task_loss_requirement=1e9)
    compare(name + "few", gazer, video[:1], gazing_ratio=0.1)  # 2 ids of a group of 3
    compare(name + "none", gazer, video, gazing_ratio=torch.tensor([[0.3, 0.0, 0.3], [0.0, 0.1, 0.4]]))
    asked = torch.tensor([[1e9], [0.0]])
    compare(name + "one stops", gazer, video[:, :2], gazing_ratio=0.4, task_loss_requirement=asked)


def compare_heads() -> None:
    """Models that read the loss from their heads."""
    gazer, video = model(), torch.randn(2, 3, 3, 64, 64)
    losses = compare("ratio", gazer, video, gazing_ratio=0.9)
    stop = max(0.0, float(losses[~losses.isnan()].quantile(0.3)))
    compare(
        "per clip",
        gazer,
        video,
        gazing_ratio=torch.tensor([0.3, 1.0]),
        task_loss_requirement=torch.tensor([[stop], [0.0]]),
    )
    compare("stop", gazer, video[:1], gazing_ratio=1.0, task_loss_requirement=stop)
    compare_first(gazer, video, "heads: ")
    compare("scales", gazer, video, gazing_ratio=0.9, scales=(64,))
    compare("window", model(window=2), torch.randn(1, 5, 3, 64, 64), gazing_ratio=0.6)


def compare_maps() -> None:
    """Models with a residual map."""
    gazer, video = model(residual_map=True), torch.randn(2, 3, 3, 64, 64)
    losses = compare("ratio", gazer, video, gazing_ratio=0.6)
    stop = max(0.0, float(losses[~losses.isnan()].quantile(0.3)))
    asked = torch.tensor([[stop], [stop / 2]])
    compare("stop", gazer, video[:, :2], gazing_ratio=1.0, task_loss_requirement=asked)
    compare_first(gazer, video, "map: ")
    compare("scales", gazer, video, gazing_ratio=0.9, scales=(64,))
    compare("window", model(window=2, residual_map=True), torch.randn(1, 4, 3, 64, 64), gazing_ratio=0.4)


def main(kind: str, library: str) -> None:
    kernels.choose = None  # Triton's choice is not asked
    emulated = Emulated(library)
    cluster.load_kernel = lambda device, shape: emulated
    cluster.takes = lambda buffers: True
    {"heads": compare_heads, "map": compare_maps}[kind]()


main(*sys.argv[1:])
