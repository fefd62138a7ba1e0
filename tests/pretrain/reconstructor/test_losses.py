"""Reconstruction losses: equal to what torch says, one value a frame, specs that are wrong are refused."""

from __future__ import annotations

import pytest
import torch

from autogaze.pretrain.reconstructor.losses import FeatureDistance, FrameLoss, gradient, l1, parse_spec

LOSSES = "autogaze.pretrain.reconstructor.losses"


def test_l1_is_torchs_for_each_frame() -> None:
    a, b = torch.randn(2, 3, 3, 16, 16), torch.randn(2, 3, 3, 16, 16)
    expected = torch.stack(
        [
            torch.stack([torch.nn.functional.l1_loss(x, y) for x, y in zip(p, q, strict=True)])
            for p, q in zip(a, b, strict=True)
        ]
    )
    torch.testing.assert_close(l1(a, b), expected)


def test_gradient_ignores_flat_offsets_and_sees_edges() -> None:
    frame = torch.rand(1, 1, 3, 32, 32)
    assert gradient(frame + 0.3, frame).item() == pytest.approx(0, abs=1e-6)
    edge = frame.clone()
    edge[..., 16:] += 1
    # one step of height 1 in each of the 31, 15 and 7 steps across; none down
    assert gradient(edge, frame).item() == pytest.approx((1 / 31 + 1 / 15 + 1 / 7) / 3, rel=1e-5)


def test_a_spec_is_the_weighted_sum_of_its_terms() -> None:
    a, b = torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 3, 32, 32)
    torch.testing.assert_close(FrameLoss("2*l1+0.5*gradient")(a, b), 2 * l1(a, b) + 0.5 * gradient(a, b))
    assert FrameLoss("l1")(a, b).shape == (2, 2)


def test_loss_is_zero_for_the_truth_and_has_a_gradient_elsewhere() -> None:
    target = torch.rand(1, 1, 3, 16, 16)
    assert FrameLoss("l1+gradient")(target, target).item() == 0
    guess = torch.zeros_like(target, requires_grad=True)
    FrameLoss("l1+gradient")(guess, target).sum().backward()
    assert guess.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown loss term ''"),
        ("l2", "unknown loss term 'l2'"),
        ("x*l1", "must be a number, got 'x'"),
        ("features", "unknown loss term"),
        ("l1:what", "unknown loss term"),
    ],
)
def test_wrong_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_spec(spec)


def test_features_compare_what_a_frozen_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, dynamic_img_size=True)
    monkeypatch.setattr(f"{LOSSES}._feature_model", lambda name: (net, (0.5,) * 3, (0.5,) * 3))
    loss = FrameLoss("features:timm/any")
    frame = torch.rand(1, 1, 3, 32, 32) * 2 - 1
    assert loss(frame, frame).item() == pytest.approx(0, abs=1e-5)
    guess = torch.zeros_like(frame, requires_grad=True)
    loss(guess, frame).sum().backward()
    assert guess.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.train().features[0].training


def test_mean_and_std_of_the_feature_model_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Net(torch.nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.flatten(2).mT

    monkeypatch.setattr(f"{LOSSES}._feature_model", lambda name: (Net(), (0.5,) * 3, (0.25,) * 3))
    FeatureDistance("any")(torch.full((1, 3, 4, 4), 1.0), torch.full((1, 3, 4, 4), -1.0))
    assert sorted({round(x.mean().item(), 4) for x in seen}) == [-2.0, 2.0]
