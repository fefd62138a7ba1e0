"""The frame encoder: equal to torch's own convolutions, causal, and the same frame by frame."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autogaze.network.encoder import FrameEncoder, resize, resize_by_products


@pytest.fixture
def encoder() -> FrameEncoder:
    return FrameEncoder(image_size=32, patch_size=8, channels=12, out_channels=10, depth=2)


def reference(encoder: FrameEncoder, video: Tensor) -> Tensor:
    """The published order of layers, with torch's convolutions on the whole clip."""
    x = encoder.temporal_conv(video.transpose(1, 2))
    x = F.layer_norm(x.movedim(1, -1), (x.shape[1],), encoder.norm.weight, encoder.norm.bias).movedim(-1, 1)
    for block in encoder.blocks:
        x = F.relu(block.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0))))  # two zero frames in front
    return encoder.out_proj(x).flatten(3).permute(0, 2, 3, 1)


@torch.no_grad()
def test_it_equals_plain_convolutions(encoder: FrameEncoder) -> None:
    video = torch.randn(2, 4, 3, 32, 32)
    torch.testing.assert_close(encoder(video)[0], reference(encoder, video), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_of_another_size_are_resized_bicubically(encoder: FrameEncoder) -> None:
    video = torch.randn(1, 2, 3, 50, 41)
    resized = F.interpolate(video[0], size=(32, 32), mode="bicubic", align_corners=False, antialias=False)[None]
    torch.testing.assert_close(encoder(video)[0], encoder(resized)[0])


@pytest.mark.parametrize("size", [(196, 196), (50, 300)])
def test_resizing_by_products_equals_interpolation(size: tuple[int, int]) -> None:
    frames = torch.rand(3, 3, *size)
    torch.testing.assert_close(resize_by_products(frames, 224), resize(frames, 224), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4), (2,), (3,), (1, 4)])
def test_any_way_of_cutting_a_clip_gives_the_same_tokens(encoder: FrameEncoder, cuts: tuple[int, ...]) -> None:
    video = torch.randn(2, 5, 3, 32, 32)
    cache, parts = None, []
    for part in torch.tensor_split(video, cuts, dim=1):
        tokens, cache = encoder(part, cache)
        parts.append(tokens)
    torch.testing.assert_close(torch.cat(parts, 1), encoder(video)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_frame_never_depends_on_later_ones(encoder: FrameEncoder) -> None:
    video = torch.randn(1, 4, 3, 32, 32)
    other = video.clone()
    other[:, 3] = 0
    torch.testing.assert_close(encoder(video)[0][:, :3], encoder(other)[0][:, :3])
    assert not torch.allclose(encoder(video)[0][:, 3], encoder(other)[0][:, 3])


@torch.no_grad()
def test_two_blocks_see_four_frames_back_and_no_further(encoder: FrameEncoder) -> None:
    video = torch.randn(1, 6, 3, 32, 32)
    other = video.clone()
    other[:, 0] = 0
    ours, theirs = encoder(video)[0], encoder(other)[0]
    assert not torch.allclose(ours[:, 4], theirs[:, 4]) and torch.allclose(ours[:, 5], theirs[:, 5])


def test_a_side_that_patches_do_not_fill_is_cut_like_a_convolution_does() -> None:
    encoder = FrameEncoder(image_size=30, patch_size=8, channels=4, out_channels=4)
    video = torch.randn(1, 1, 3, 30, 30)
    with torch.no_grad():
        assert encoder(video)[0].shape == (1, 1, 9, 4)
        torch.testing.assert_close(encoder(video)[0], reference(encoder, video), atol=1e-5, rtol=1e-5)


def test_patch_kernel_equals_the_product_and_norm() -> None:
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of PyTorch only")
    script = """
import torch
from autogaze.network.encoder import FrameEncoder
from autogaze.network.patch_embedding import patch_tokens
torch.manual_seed(0)
video = torch.randn(2, 5, 3, 64, 64)
parts = (video, video[:, 1:3], video[:, 4:], video.transpose(3, 4))
for channels, part in (*((48, part) for part in parts), (12, video), (64, video)):
    with torch.no_grad():
        encoder = FrameEncoder(64, 16, channels, 48).eval()
        torch.nn.init.normal_(encoder.norm.weight), torch.nn.init.normal_(encoder.norm.bias)
        grey = torch.zeros(2, 7, 1, 64, 64)
        tokens = patch_tokens(part, encoder.temporal_conv, encoder.norm, encoder.side, None)
        again = patch_tokens(part, encoder.temporal_conv, encoder.norm, encoder.side, grey[:, : part.shape[1]])
        torch.testing.assert_close(tokens, encoder.norm(encoder._patchify(part)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grey[:, : part.shape[1]], part.mean(2, keepdim=True), atol=1e-6, rtol=1e-6)
        assert torch.equal(tokens, again) and not grey[:, part.shape[1] :].any()
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.gpu
def test_gpu_bfloat16_tokens_are_close_to_float32() -> None:
    encoder, video = FrameEncoder(224, 16, 192, 192).cuda().eval(), torch.randn(2, 4, 3, 224, 224, device="cuda")
    with torch.no_grad():
        exact, memory = encoder(video)
        fast, fast_memory = encoder.bfloat16()(video)
    assert float((fast.float() - exact).norm() / exact.norm()) < 0.02
    assert float((fast_memory[0].float() - memory[0]).norm() / memory[0].norm()) < 0.02


@pytest.mark.gpu
def test_gpu_tokens_are_the_same_every_time_with_and_without_grey_frames() -> None:
    from autogaze.network.patch_embedding import patch_tokens

    encoder = FrameEncoder(224, 16, 192, 192).cuda().bfloat16().eval()
    for video in (
        torch.randn(1, 1, 3, 224, 224, device="cuda").bfloat16(),
        torch.randn(64, 6, 3, 224, 224, device="cuda").bfloat16()[:, 1:5],
    ):
        layers = encoder.temporal_conv, encoder.norm, encoder.side
        grey = torch.zeros_like(video[:, :, :1], memory_format=torch.contiguous_format)
        with torch.no_grad():
            plain = encoder.norm(encoder._patchify(video))
            for _ in range(8):
                tokens = patch_tokens(video, *layers, grey)
                assert torch.equal(tokens, patch_tokens(video, *layers, None))
                torch.testing.assert_close(tokens, plain, atol=0.1, rtol=0.02)
                torch.testing.assert_close(grey, video.float().mean(2, keepdim=True).bfloat16())
