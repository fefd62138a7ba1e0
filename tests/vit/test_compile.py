"""Compiled parts give the same numbers, one block's code serves all blocks, and graphs replay on the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("transformers")

from autogaze import Gaze, PatchGrid  # noqa: E402
from autogaze.vit import GazedViT, GraphedViT, graphs  # noqa: E402
from autogaze.vit.attention import LONG_RUN  # noqa: E402
from autogaze.vit.graphs import Form, default_buckets  # noqa: E402
from tests.vit.vit_models import CASES, Case  # noqa: E402

BY_NAME = {case.name: case for case in CASES}
COMPILED = [BY_NAME[name] for name in ("VisionTransformer, class token", "RoPE-ViT: mixed rotary", "SiglipVisionModel")]
GRAPHED = [
    *COMPILED,
    *(
        BY_NAME[name]
        for name in ("DINOv3: rotary only, registers", "learned positions, linear embedding", "Dinov2Model")
    ),
]


def _inputs(gazed: GazedViT, clips: int = 2) -> tuple[torch.Tensor, Gaze]:
    patch = gazed.patch_size
    grid = PatchGrid((patch, 2 * patch, 4 * patch), patch)
    mask = torch.rand(clips, 3, grid.patches_per_frame) < 0.4
    return torch.randn(clips, 3, 3, grid.height_px, grid.width_px), Gaze.from_patch_mask(mask, grid)


@torch.no_grad()
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.family}: {case.name}")
def test_two_compiled_graphs_serve_the_whole_model(case: Case) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gazed = GazedViT(case.build().eval(), "block_causal")
    video, gaze = _inputs(gazed)
    expected = gazed(video, gaze, capacity=gaze.ids.numel())
    gazed.compile(backend="eager", fullgraph=True)
    got = gazed(video, gaze, capacity=gaze.ids.numel())
    count = int(gaze.chosen.sum())
    assert torch.allclose(got.features[:count], expected.features[:count], atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # cutting, and one block


def _chosen(gazed: GazedViT, count: int, clips: int = 2) -> tuple[torch.Tensor, Gaze]:
    """A video, and a gaze of 126 slots of which `count`, anywhere, are chosen."""
    video, gaze = _inputs(gazed, clips)
    size = gaze.grid.patches_per_frame
    ids = torch.rand(clips, 3, size).argsort(-1)
    return video, Gaze(ids, (torch.randperm(ids.numel()) < count).view_as(ids), gaze.grid)


def _long(gazed: GazedViT, missing: int = 0) -> tuple[torch.Tensor, Gaze]:
    """A video, and a gaze whose runs are long ones with joint attention; `missing` slots anywhere are not chosen."""
    patch, frames = gazed.patch_size, 30
    grid = PatchGrid((patch, 2 * patch, 4 * patch), patch)
    ids = torch.rand(2, frames, grid.patches_per_frame).argsort(-1)[..., :18]
    assert ids[0].numel() >= LONG_RUN
    chosen = (torch.randperm(ids.numel()) >= missing).view_as(ids)
    return torch.randn(2, frames, 3, grid.height_px, grid.width_px), Gaze(ids, chosen, grid)


class _Unrecorded:
    """Stands in for a capture where there is no GPU: a replay runs what would have been recorded."""

    def __init__(self, graphed: GraphedViT, form: Form) -> None:
        self.graphed, self.form, self.graph, self.replays = graphed, form, self, 0

    def replay(self) -> None:
        self.replays += 1
        self.features = self.graphed.gazed.encode_gaze(self.graphed._video, self.graphed._gaze, *self.form)


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_check_capturable", lambda gazed, video: None)
    monkeypatch.setattr(GraphedViT, "_capture", lambda graphed, form: _Unrecorded(graphed, form))


def test_default_buckets_fit_the_example_and_everything() -> None:
    assert default_buckets(12_336, 13_312) == (12_544, 13_312)
    assert default_buckets(0, 500) == (128, 500)
    for count, slots in ((500, 500), (499, 500), (3, 128), (0, 0)):
        assert default_buckets(count, slots) == (slots,)


@torch.no_grad()
@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
def test_a_gaze_goes_to_the_smallest_bucket_that_holds_it(attention: str) -> None:
    gazed = GazedViT(CASES[0].build().eval(), attention)
    graphed = GraphedViT(gazed, *_chosen(gazed, 20, clips=3), compile=False)
    assert graphed.buckets == (128, 189)
    for count, rows in ((128, 128), (0, 128), (129, 189), (188, 189), (189, 189)):  # runs too short to gain from more
        video, gaze = _chosen(gazed, count, clips=3)
        before = graphed._captures[Form(rows)].replays
        got, expected = graphed(video, gaze), gazed(video, gaze)
        assert graphed._captures[Form(rows)].replays == before + 1
        assert torch.equal(got.offsets, expected.offsets) and torch.equal(got.ids[:count], expected.ids)
        assert torch.allclose(got.features[:count], expected.features, atol=1e-5)
        assert torch.allclose(got.pool(), expected.pool(), atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("unrecorded")
def test_one_bucket_of_all_slots_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gazed = GazedViT(CASES[0].build().eval(), "joint")
    graphed = GraphedViT(gazed, *_chosen(gazed, 20), buckets=(126,), compile=False)
    _, gaze = _chosen(gazed, 126)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: pytest.fail("asked for a number"))
    assert graphed.form(gaze) == Form(126)


@torch.no_grad()
@pytest.mark.usefixtures("unrecorded")
def test_a_gaze_that_no_bucket_holds_is_refused() -> None:
    gazed = GazedViT(CASES[0].build().eval())
    graphed = GraphedViT(gazed, *_chosen(gazed, 20), buckets=(24, 48), compile=False)
    with pytest.raises(ValueError, match="49 patches were chosen but the largest bucket holds 48"):
        graphed(*_chosen(gazed, 49))


@torch.no_grad()
@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.family}: {case.name}")
def test_only_a_gaze_without_holes_goes_to_the_regular_form(case: Case) -> None:
    gazed = GazedViT(case.build().eval(), "joint")
    _, example = _long(gazed)
    slots = example.ids.numel()
    graphed = GraphedViT(gazed, *_long(gazed), buckets=(100, slots), compile=False)
    assert set(graphed._captures) == {Form(100), Form(slots), Form(slots, whole=True)}
    for missing, form in ((0, Form(slots, True)), (1, Form(slots)), (slots - 100, Form(100)), (0, Form(slots, True))):
        video, gaze = _long(gazed, missing)
        assert graphed.form(gaze) == form
        before = graphed._captures[form].replays
        got, expected = graphed(video, gaze), gazed(video, gaze, capacity=slots)
        assert graphed._captures[form].replays == before + 1
        count = slots - missing
        assert torch.equal(got.offsets, expected.offsets) and torch.equal(got.ids[:count], expected.ids[:count])
        assert torch.allclose(got.features[:count], expected.features[:count], atol=1e-5)
        assert torch.allclose(got.pool(), expected.pool(), atol=1e-5)
    fewer = Gaze(example.ids[..., :-1], example.chosen[..., :-1], example.grid)  # all chosen, but of fewer slots
    assert graphed.form(fewer) == Form(slots)


@torch.no_grad()
@pytest.mark.usefixtures("unrecorded")
def test_the_regular_form_is_there_where_it_can_be_told_and_pays() -> None:
    model = CASES[0].build().eval()
    joint, frame, causal = (GazedViT(model, attention) for attention in ("joint", "frame", "block_causal"))
    slots = _long(joint)[1].ids.numel()

    def forms(gazed: GazedViT, buckets: tuple[int, ...] = (), missing: int = 0) -> set[Form]:
        return set(GraphedViT(gazed, *_long(gazed, missing), buckets, compile=False)._captures)

    assert forms(joint) == {Form(slots), Form(slots, whole=True)}
    assert forms(joint, missing=1) == forms(joint, (slots,)) == forms(frame) == forms(causal) == {Form(slots)}
    assert forms(joint, (24,)) == {Form(24)}


@torch.no_grad()
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.family}: {case.name}")
def test_each_form_compiles_one_block_once(case: Case) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gazed = GazedViT(case.build().eval(), "joint")
    slots = _long(gazed)[1].ids.numel()
    gazed.compile(backend="eager", fullgraph=True)  # fails where it would fall back to what is not compiled
    forms = [Form(slots, whole=True), Form(slots), Form(256)]
    for _ in range(3):  # as when capturing: other videos and gazes, again and again
        for form in forms:
            video, gaze = _long(gazed, slots - form.rows)
            got = gazed.encode_gaze(video, gaze, *form)
            expected = GazedViT(gazed.model, "joint")(video, gaze)
            assert torch.allclose(got.features[: form.rows], expected.features, atol=1e-5)
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] == 2 + 3  # cutting has two shapes, a block three forms


def test_graphs_need_a_gpu() -> None:
    gazed = GazedViT(CASES[0].build().eval())
    video, gaze = _inputs(gazed)
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device, the video is on cpu"):
        GraphedViT(gazed, video, gaze)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
@pytest.mark.parametrize("case", GRAPHED, ids=lambda case: f"{case.family}: {case.name}")
def test_a_replayed_graph_gives_what_the_model_gives(case: Case, attention: str, compiled: bool) -> None:
    if compiled and (case is not GRAPHED[0] or attention == "frame"):
        pytest.skip("compiling takes long: one model, two kinds of attention")
    torch._dynamo.reset()
    eager = GazedViT(case.build().eval().cuda().bfloat16(), attention)
    video, whole = _inputs(eager)
    whole = Gaze.from_patch_mask(torch.ones(2, 3, whole.grid.patches_per_frame, dtype=torch.bool), whole.grid).to(
        "cuda"
    )
    graphed = GraphedViT(GazedViT(eager.model, attention), video.cuda().bfloat16(), whole, (24, 999), compiled)
    assert graphed.buckets == (24, whole.ids.numel())
    for _ in range(3):  # other videos and gazes than the captured ones
        video, gaze = _inputs(eager)
        video, gaze = video.cuda().bfloat16(), gaze.to("cuda")
        got, expected = graphed(video, gaze), eager(video, gaze)
        count = len(expected.features)
        assert torch.equal(got.offsets, expected.offsets) and torch.equal(got.ids[:count], expected.ids)
        assert (got.features[:count].float() - expected.features.float()).abs().max() < 6e-2
        assert (got.pool().float() - expected.pool().float()).abs().max() < 6e-2


class _Counted:
    """A recorded graph that counts its replays."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self.graph, self.replays = graph, 0

    def replay(self) -> None:
        self.replays += 1
        self.graph.replay()


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.family}: {case.name}")
def test_the_right_graph_is_replayed_and_gives_what_the_model_gives(case: Case, compiled: bool) -> None:
    if compiled and case is not COMPILED[0]:
        pytest.skip("compiling takes long: one model")
    torch._dynamo.reset()
    eager = GazedViT(case.build().eval().cuda().bfloat16(), "joint")
    video, whole = _long(eager)
    slots = whole.ids.numel()
    graphed = GraphedViT(
        GazedViT(eager.model, "joint"), video.cuda().bfloat16(), whole.to("cuda"), (128, slots), compiled
    )
    assert set(graphed._captures) == {Form(128), Form(slots), Form(slots, whole=True)}
    for form, capture in graphed._captures.items():
        graphed._captures[form] = replace(capture, graph=_Counted(capture.graph))
    wanted = ((0, Form(slots, True)), (1, Form(slots)), (slots - 128, Form(128)), (0, Form(slots, True)))
    for missing, form in wanted * 2:
        video, gaze = _long(eager, missing)
        video, gaze = video.cuda().bfloat16(), gaze.to("cuda")
        before = {form: capture.graph.replays for form, capture in graphed._captures.items()}
        got, expected = graphed(video, gaze), eager(video, gaze, capacity=slots)  # never regular
        after = {form: capture.graph.replays for form, capture in graphed._captures.items()}
        assert after == {**before, form: before[form] + 1}
        count = slots - missing
        assert torch.equal(got.offsets, expected.offsets) and torch.equal(got.ids[:count], expected.ids[:count])
        assert (got.features[:count].float() - expected.features[:count].float()).abs().max() < 6e-2
        assert (got.pool().float() - expected.pool().float()).abs().max() < 6e-2
