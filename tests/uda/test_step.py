# SPDX-License-Identifier: Apache-2.0
import contextlib
import functools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pipa_fast.data.augmentation import VIEWS
from pipa_fast.data.batch import Batch
from pipa_fast.models import HRDAConfig, ModelConfig, build_network
from pipa_fast.uda import step as module
from pipa_fast.uda.config import (
    AdaptationConfig,
    FeatureConfig,
    MaskedConfig,
    MixedConfig,
    PatchConfig,
    PixelConfig,
    SourceConfig,
)
from pipa_fast.uda.objectives import build_objectives
from pipa_fast.uda.outputs import ramp
from pipa_fast.uda.step import AdaptationStep
from pipa_fast.uda.teacher import Teacher


def a_batch():
    torch.manual_seed(1)
    boxes = torch.tensor([[[0, 0, 32, 32], [8, 8, 40, 40]]] * 2)
    return Batch(
        iteration=torch.tensor(0),
        index=torch.arange(2),
        source_image=torch.rand(2, 3, 32, 32),
        source_label=torch.randint(0, 5, (2, 32, 32)),
        target_image=torch.rand(2, 3, 32, 32),
        target_valid=torch.ones(2, 32, 32, dtype=torch.bool),
        target_crops=torch.rand(2, 2, 3, 32, 32),
        boxes=boxes,
        flips=torch.tensor([[False, True], [True, False]]),
    )


def a_step(config, hrda=None, **settings):
    torch.manual_seed(0)
    model = ModelConfig(encoder="streets_s", head="light", hrda=hrda or HRDAConfig(), **settings)
    network = build_network(model)
    objectives = build_objectives(config, model, network)
    step = AdaptationStep(
        network, Teacher(network), objectives, config, seed=0, autocast=contextlib.nullcontext
    )
    return network, step


EVERYTHING = {
    "mixed": MixedConfig(weight=1.0, threshold=0.05),
    "features": FeatureConfig(weight=0.1, classes=tuple(range(19)), min_ratio=0.2),
    "masked": MaskedConfig(weight=1.0, block=8),
    "pixel": PixelConfig(weight=0.1, images="both", confidence=0.0),
    "patch": PatchConfig(weight=0.1, confidence_threshold=0.0, bank=64, num_pairs=64),
}


@pytest.mark.parametrize("hrda", [None, HRDAConfig(enabled=True, detail=(16, 16))])
def test_every_objective_gives_a_finite_value_and_the_student_a_gradient(hrda):
    network, step = a_step(AdaptationConfig(**EVERYTHING), hrda)
    values = step(a_batch(), 0)
    terms = {"source", "features", "mixed", "masked", "pixel_source", "pixel_mixed", "patch"}
    assert values.keys() == terms and not any(v.requires_grad for v in values.values())
    # the student still is where the frozen network stayed
    assert all(torch.isfinite(v) and v > 0 for k, v in values.items() if k != "features"), values
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("features", ["fused", "encoder"])
@pytest.mark.parametrize("hrda", [None, HRDAConfig(enabled=True, detail=(16, 16))])
def test_what_no_term_uses_has_no_gradient_with_ddp_either(one_rank, hrda, features):
    """Where contrast comes first, the classifier would decay and count steps before its own."""
    late = {"mixed": MixedConfig(weight=1.0, start=5), "patch": PatchConfig(weight=0.1, start=5)}
    config = AdaptationConfig(
        source=SourceConfig(weight=0.0),
        features=EVERYTHING["features"],
        pixel=PixelConfig(weight=1.0, images="source"),
        **late,
    )
    idle = []
    for wrap in (lambda network: network, DistributedDataParallel):
        network, step = a_step(config, hrda, pixel_features=features)
        step.student = wrap(network)
        for iteration in (0, 1):  # DDP tells in the second what it missed in the first
            step(a_batch(), iteration)
        idle.append({name for name, p in network.named_parameters() if p.grad is None})
    assert idle[0] == idle[1]
    assert {"head.conv_seg.weight", "projections.patch.layers.0.weight"} <= idle[0]
    assert ("head.norm.weight" in idle[0]) == (features == "encoder")


def gradients(config):
    network, step = a_step(config)
    step(a_batch(), 0)
    zero = torch.zeros(())
    return {n: zero if p.grad is None else p.grad for n, p in network.named_parameters()}


def test_the_gradient_is_that_of_the_weighted_and_scaled_loss():
    """Cross-entropy of the enlarged logits, 2 times by its weight and 3 times by the scale."""
    config, batch = AdaptationConfig(source=SourceConfig(weight=2.0)), a_batch()
    network, step = a_step(config)
    values = step(batch, 0, scale=lambda loss: 3 * loss)
    alone, _ = a_step(config)
    logits = F.interpolate(alone(batch.source_image).logits, (32, 32), mode="bilinear")
    loss = F.cross_entropy(logits, batch.source_label)
    torch.testing.assert_close(values["source"], loss.detach())
    (6 * loss).backward()
    for found, expected in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_terms_add_up():
    """The gradient of all terms is the sum of each term's own."""
    every = gradients(AdaptationConfig(**EVERYTHING))
    source = gradients(AdaptationConfig())
    patch = gradients(AdaptationConfig(patch=EVERYTHING["patch"]))
    mixed, masked = EVERYTHING["mixed"], EVERYTHING["masked"]
    pixel = gradients(AdaptationConfig(mixed=mixed, pixel=EVERYTHING["pixel"]))
    labelled = MixedConfig(weight=0.0, threshold=mixed.threshold)
    masked = gradients(AdaptationConfig(mixed=labelled, masked=masked))
    features = gradients(AdaptationConfig(features=EVERYTHING["features"]))
    for name, value in every.items():
        total = pixel[name] + patch[name] + masked[name] + features[name] - 3 * source[name]
        torch.testing.assert_close(value, total, rtol=1e-3, atol=1e-6)


def test_features_are_compared_in_one_precision():
    """Else rounding alone would be a distance, 1 % of the features' length in bfloat16."""
    _, step = a_step(AdaptationConfig(features=EVERYTHING["features"]))
    step.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    assert step(a_batch(), 0)["features"] == 0, "the student is what it started from"


class RowsOfContrasts(TorchDispatchMode):
    """Notes the dtype of the rows that each contrast is given."""

    def __init__(self):
        super().__init__()
        self.dtypes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pipa_fast" and isinstance(args[0], torch.Tensor):
            self.dtypes[func.overloadpacket.__name__] = args[0].dtype
        return func(*args, **(kwargs or {}))


def test_contrasts_take_rows_in_the_students_precision():
    """That is where tensor cores are; sums and losses are float32 all the same."""
    _, step = a_step(AdaptationConfig(**EVERYTHING))
    step.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with RowsOfContrasts() as seen:
        losses = step(a_batch(), 0)
    assert seen.dtypes["pixel_contrast"] == seen.dtypes["patch_consistency"] == torch.bfloat16
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_the_teacher_labels_the_target_once_for_all_who_read_it():
    _, step = a_step(AdaptationConfig(mixed=EVERYTHING["mixed"], masked=EVERYTHING["masked"]))
    calls, teacher = [], step.teacher

    def counted(images):
        calls.append(len(images))
        return teacher(images)

    step.teacher = counted
    step(a_batch(), 0)
    step(a_batch(), 1)
    assert calls == [2, 2]


def test_the_first_crop_as_target_saves_the_teacher_a_pass():
    """Crops that are labelled apart get the same labels, and the term the same value."""
    apart, shared = (
        a_step(AdaptationConfig(mixed=EVERYTHING["mixed"], patch=replace(patch, **how)))[1]
        for patch in [EVERYTHING["patch"]]
        for how in ({}, {"first_is_target": True})
    )
    batch = a_batch()
    batch = batch._replace(target_image=batch.target_crops[:, 0])
    values, passes = [], []
    for step in (apart, shared):
        sizes = []
        step.teacher.network.register_forward_pre_hook(
            lambda _, images, sizes=sizes: sizes.append(len(images[0]))
        )
        values.append(step(batch, 0))
        passes.append(sizes)
    assert passes == [[2, 4], [2, 2]]
    torch.testing.assert_close(values[0], values[1])


def test_images_are_changed_under_draws_of_their_own(monkeypatch):
    """Mixed and masked ones as strongly as the recipe says, each of both crops as a view."""
    seen = []

    def noted(images, *, index, stream, augmentation, **how):
        seen.append((stream, augmentation, index.tolist()))
        return images

    monkeypatch.setattr(module, "strong_augment", noted)
    plain = {name: EVERYTHING[name] for name in ("mixed", "masked", "patch")}
    _, step = a_step(AdaptationConfig(**plain))
    step(a_batch(), 0)
    strong = (step.jitter, [0, 1])
    assert [how for _, *how in seen] == [[*strong], [*strong], [VIEWS, [0, 2, 1, 3]]]
    assert len({stream for stream, *_ in seen}) == 3
    seen.clear()
    _, step = a_step(
        AdaptationConfig(**{name: replace(term, augment=False) for name, term in plain.items()})
    )
    step(a_batch(), 0)
    assert not seen


def test_source_images_change_before_anything_sees_them(monkeypatch):
    """The student, class mixing and the frozen network; targets stay as they are."""
    monkeypatch.setattr(module, "distort", lambda images, **_: torch.full_like(images, 0.25))
    plain = {name: replace(EVERYTHING[name], augment=False) for name in ("mixed", "masked")}
    terms = plain | {"features": EVERYTHING["features"]}
    for augment in (True, False):
        _, step = a_step(AdaptationConfig(source=SourceConfig(augment=augment), **terms))
        seen: list[torch.Tensor] = []

        def note(_, images, seen=seen):
            seen.append(images[0])

        features = next(o for o in step.objectives if o.name == "features")
        for network in (step.network, features._frozen[0]):
            network.encoder.register_forward_pre_hook(note)
        step(a_batch(), 0)
        source, frozen, mixed, _ = seen
        gray = ((0.25 - network.mean) / network.std).expand(2, 3, 32, 32)
        assert torch.equal(source, gray) == torch.equal(frozen, gray) == augment
        assert (mixed == gray).all(1).any() == augment and not (mixed == gray).all()


def test_the_jitter_of_a_recipe_is_that_of_all_four_changes():
    jitter = a_step(AdaptationConfig(mixed=MixedConfig(weight=1.0, jitter=0.3)))[1].jitter
    changes = ("brightness", "contrast", "saturation", "hue")
    assert [getattr(jitter, change) for change in changes] == [0.3] * 4


def test_masked_images_keep_the_labels_of_the_whole_ones():
    """Hidden blocks are the mean colour, which the encoder sees as 0."""
    masked = MaskedConfig(weight=1.0, block=8, ratio=0.5, augment=False)
    _, step = a_step(AdaptationConfig(mixed=EVERYTHING["mixed"], masked=masked))
    seen = []
    step.network.encoder.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    batch = a_batch()
    outputs = step._masked(batch, 0)
    hidden = (seen[-1] == 0).all(1)
    blocks = hidden.view(2, 4, 8, 4, 8).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        labels, confidence, share = step._teach(batch.target_image)
    assert torch.equal(outputs.labels, labels) and torch.equal(outputs.confidence, confidence)
    assert torch.equal(outputs.weights, share * torch.ones_like(confidence))


def test_masked_images_of_both_domains_keep_their_own_labels():
    """MIC's `separate`: of two images one is a source image, which counts in full."""
    masked = MaskedConfig(weight=1.0, block=8, ratio=0.0, images="both", augment=False)
    _, step = a_step(AdaptationConfig(mixed=EVERYTHING["mixed"], masked=masked))
    seen = []
    step._forward = lambda group, images, **how: seen.append(images)
    for iteration, source in ((0, 0), (1, 1)):
        step.taught, target = None, 1 - source
        batch = a_batch()._replace(iteration=torch.tensor(iteration))
        outputs = step._masked(batch, iteration)
        taught = step._target(batch)
        assert torch.equal(seen[-1][source], batch.source_image[source])
        assert torch.equal(seen[-1][target], batch.target_image[target])
        assert torch.equal(outputs.labels[source], batch.source_label[source])
        assert torch.equal(outputs.labels[target], taught.labels[target])
        assert (outputs.weights[source] == 1).all() and (outputs.confidence[source] == 1).all()
        assert torch.equal(outputs.weights[target], taught.weights[target])


def test_the_detail_window_is_on_the_grid_and_changes_with_group_and_step():
    _, step = a_step(AdaptationConfig(), HRDAConfig(enabled=True, detail=(16, 32)))
    images = torch.rand(1, 3, 64, 128)
    windows = [step._window(g, i, images) for g in ("source", "mixed") for i in range(100)]
    assert {(w.y1 - w.y0, w.x1 - w.x0) for w in windows} == {(16, 32)}
    assert len(set(windows[:100]) | set(windows[100:])) > 60
    assert windows[:100] != windows[100:]
    assert {w.y0 for w in windows} == set(range(0, 49, 8))
    assert {w.x0 for w in windows} == set(range(0, 97, 8))
    assert step._window("source", 7, images) == windows[7]


def test_each_group_is_looked_at_in_its_own_way():
    network, step = a_step(
        AdaptationConfig(**EVERYTHING), HRDAConfig(enabled=True, detail=(16, 16))
    )
    seen = []
    network.register_forward_pre_hook(lambda _, args, how: seen.append(how), with_kwargs=True)
    batch = a_batch()
    step(batch, 7)
    windows = [step._window(g, 7, batch.target_image) for g in ("source", "mixed", "masked")]
    assert [how.get("window") for how in seen] == [*windows, None]
    assert [how.get("context_only", False) for how in seen] == [False, False, False, True]
    assert [how["embed"] for how in seen] == [("pixel",), ("pixel",), (), ("patch",)]


def test_the_patch_term_reaches_the_student():
    """The published release sends this gradient nowhere."""
    plain = gradients(AdaptationConfig())
    with_patch = gradients(AdaptationConfig(patch=EVERYTHING["patch"]))
    encoder = [n for n in plain if n.startswith("encoder")]
    assert all(not torch.equal(plain[n], with_patch[n]) for n in encoder)


def test_the_releases_branch_does_not():
    config = PatchConfig(
        weight=0.1, confidence_threshold=0.0, bank=64, num_pairs=64, branch="teacher"
    )
    plain, release = gradients(AdaptationConfig()), gradients(AdaptationConfig(patch=config))
    for name, value in plain.items():
        if "patch" in name:
            assert release[name].abs().sum() > 0
        else:
            assert torch.equal(value, release[name]), name


def test_confidence_weighs_target_pixels_on_request():
    values = []
    for weigh in (False, True):
        pixel = PixelConfig(
            weight=0.1, images="mixed", confidence=0.0, weigh_by_confidence=weigh, num_anchors="all"
        )
        _, step = a_step(AdaptationConfig(mixed=EVERYTHING["mixed"], pixel=pixel))
        values.append(step(a_batch(), 0))
    assert torch.equal(values[0]["mixed"], values[1]["mixed"])
    assert values[0]["pixel"] != values[1]["pixel"]


def test_pseudo_labels_of_the_margins_count_for_no_term():
    """Pasted source pixels keep their label and weight there; the teacher's have none."""
    mixed = MixedConfig(weight=1.0, threshold=0.0, ignore_top=5, ignore_bottom=3)
    _, step = a_step(AdaptationConfig(mixed=mixed))
    whole = a_batch()
    maps = ("source_image", "source_label", "target_image", "target_valid")
    batch = whole._replace(**{name: getattr(whole, name)[..., :16] for name in maps})
    outputs = step._mixed(batch, 0)
    assert batch.target_valid.all(), "the batch stays as it is"
    assert outputs.confidence.max() == 1
    weights, teachers = outputs.weights, outputs.confidence < 1
    assert teachers[:, :5].any() and teachers[:, -3:].any() and teachers[:, 5:-3].any()
    assert (weights[:, :5][teachers[:, :5]] == 0).all()
    assert (weights[:, -3:][teachers[:, -3:]] == 0).all()
    assert (weights[:, 5:-3] == 1).all() and (weights[~teachers] == 1).all()
    for margin in (slice(None, 5), slice(-3, None)):
        assert (outputs.labels[:, margin][teachers[:, margin]] == 255).all(), "contrasts read it"
    assert (outputs.labels[:, 5:-3] != 255).all() and (outputs.labels[~teachers] != 255).all()


def test_an_objective_waits_for_its_start():
    config = AdaptationConfig(pixel=PixelConfig(weight=0.1, start=5))
    _, step = a_step(config)
    assert step(a_batch(), 4).keys() == {"source"}
    assert step(a_batch(), 5).keys() == {"source", "pixel"}


def test_ramp():
    assert [ramp(i, 2, 4) for i in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [ramp(i, 2, 0) for i in range(4)] == [0, 0, 1, 1]


def test_a_recipe_that_reads_a_teacher_needs_one():
    config = AdaptationConfig(mixed=MixedConfig(weight=1.0))
    network, _ = a_step(config)
    with pytest.raises(ValueError, match="teacher must be given"):
        AdaptationStep(network, None, [], config, seed=0, autocast=contextlib.nullcontext)
