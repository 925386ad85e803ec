# SPDX-License-Identifier: Apache-2.0
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from pipa_fast.data.sample import Sample
from pipa_fast.evaluation import inference
from pipa_fast.evaluation.inference import (
    EvalResult,
    SlidingWindow,
    evaluate,
    evaluating,
    predict_logits,
    to_batch,
)
from pipa_fast.models import HRDAConfig, ModelConfig, build_network
from pipa_fast.training import distributed


class Positions(nn.Module):
    """Answers each pixel with the mean of its 2x2 cell: exact at stride 2 for smooth images."""

    stride = 2

    def forward(self, images):
        return F.avg_pool2d(images, 2)


def test_a_whole_image_is_enlarged_as_in_mmsegmentation(network):
    """To the size that the network sees, then to the label's; DAFormer's recipes halve images."""
    images = torch.rand(2, 3, 24, 48)
    with evaluating(network):
        logits = predict_logits(network, images, size=(48, 96))
        seen = F.interpolate(network(images).logits, (24, 48), mode="bilinear")
        expected = F.interpolate(seen, (48, 96), mode="bilinear")
        with torch.autocast("cpu", torch.bfloat16):
            rough = predict_logits(network, images, size=(48, 96))
    torch.testing.assert_close(logits, expected)
    assert logits.dtype == rough.dtype == torch.float32


@pytest.mark.parametrize("size", [(1, 1), (23, 47), (24, 45), (5, 48)])
def test_any_size_goes_in_and_comes_out(network, size):
    with evaluating(network):
        assert predict_logits(network, torch.rand(1, 3, *size)).shape == (1, 19, *size)


@pytest.mark.parametrize("hrda", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 31), (40, 3), (28, 64)])
def test_images_below_the_coarsest_cell_go_in_too(size, hrda):
    """A MiT's first stage reduces its keys by 8 x 8 cells of 4 pixels, which must be there."""
    detail = HRDAConfig(enabled=hrda, detail=(64, 64))
    config = ModelConfig(encoder="mit_b0", projections=False, hrda=detail)
    network, images = build_network(config), torch.rand(1, 3, *size)
    with evaluating(network):
        for window in (None, SlidingWindow(crop=(16, 16), stride=(16, 16))):
            assert predict_logits(network, images, window=window).shape == (1, 19, *size)


def test_padding_leaves_pixels_in_place():
    ramp = torch.arange(22.0).expand(1, 3, 10, 22) / 22
    padded = predict_logits(Positions(), ramp[..., :21])
    torch.testing.assert_close(padded[..., 1:19], ramp[..., 1:19], atol=1e-5, rtol=0)
    # the last cell holds column 20 twice; column 20 lies a quarter before its centre
    last = torch.full((1, 3, 10), (0.25 * 18.5 + 0.75 * 20) / 22)
    torch.testing.assert_close(padded[..., 20], last)


@pytest.mark.parametrize(
    ("size", "seen"), [((24, 48), (16, 32)), ((30, 40), (16, 21)), ((40, 30), (21, 16))]
)
def test_images_of_other_proportions_than_the_recipes_are_not_stretched(size, seen):
    sizes = []

    class Watching(nn.Module):
        def forward(self, images):
            sizes.append(tuple(images.shape[2:]))
            return images

    logits = predict_logits(Watching(), torch.rand(1, 3, *size), image_size=(16, 32))
    assert sizes == [seen] and logits.shape[2:] == size


@pytest.mark.parametrize("stride", [(4, 8), (3, 5), (8, 16), (1, 1)])
@pytest.mark.parametrize("size", [(19, 37), (12, 16), (8, 20)])
def test_sliding_windows_cover_every_pixel_and_average(size, stride):
    """A network that answers 1 everywhere must still do so, and position must be kept."""
    images, seen = torch.rand(2, 3, *size), set()

    class Identity(nn.Module):
        def forward(self, images):
            seen.add(tuple(images.shape[2:]))
            return torch.cat((images, torch.ones_like(images[:, :1])), 1)

    logits = predict_logits(Identity(), images, window=SlidingWindow(crop=(8, 16), stride=stride))
    torch.testing.assert_close(logits[:, :3], images)
    torch.testing.assert_close(logits[:, 3], torch.ones(2, *size))
    assert seen == {(8, 16)}


def test_overlaps_are_means_of_the_windows():
    class Mean(nn.Module):
        def forward(self, images):
            return images.mean((2, 3), keepdim=True).expand_as(images)

    images = torch.zeros(1, 3, 2, 6)
    images[..., 4:] = 1
    logits = predict_logits(Mean(), images, window=SlidingWindow(crop=(2, 4), stride=(2, 2)))
    assert logits[0, 0, 0].tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5]


def test_a_window_larger_than_the_image_is_the_whole_image(network):
    images = torch.rand(1, 3, 24, 48)
    with evaluating(network):
        whole = predict_logits(network, images)
        windowed = predict_logits(
            network, images, window=SlidingWindow(crop=(64, 64), stride=(32, 32))
        )
    assert torch.equal(whole, windowed)


@pytest.mark.parametrize("batch", [2, 3, 100])
@pytest.mark.parametrize("size", [(24, 48), (21, 43), (8, 50), (50, 8)])
def test_windows_in_one_pass_are_windows_one_by_one(network, size, batch):
    images = torch.rand(3, 3, *size)
    sizes = []

    def predict(batch: int) -> torch.Tensor:
        window = SlidingWindow(crop=(16, 16), stride=(8, 11), batch=batch)
        return predict_logits(network, images, window=window)

    hook = network.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    with evaluating(network):
        single = predict(1)
        passes = len(sizes)
        together = predict(batch)
    hook.remove()
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)
    assert sizes[:passes] == [1] * passes and passes % 3 == 0
    full, rest = divmod(passes, batch)
    assert sizes[passes:] == [batch] * full + [rest] * (rest > 0)


def test_flipping_averages_the_probabilities_of_image_and_mirror_image(network):
    images = torch.rand(2, 3, 21, 43)
    window = SlidingWindow(crop=(16, 16), stride=(8, 8))
    with evaluating(network):
        for options in ({}, {"window": window}, {"size": (42, 86)}):
            plain = predict_logits(network, images, **options).softmax(1)
            mirrored = predict_logits(network, images.flip(3), **options).softmax(1).flip(3)
            both = predict_logits(network, images, flip=True, **options)
            torch.testing.assert_close(both.softmax(1), (plain + mirrored) / 2)
            torch.testing.assert_close(both.exp(), (plain + mirrored) / 2)
        turned = predict_logits(network, images.flip(3), flip=True).flip(3)
        straight = predict_logits(network, images, flip=True)
        torch.testing.assert_close(turned, straight)


def test_flipping_stays_finite_where_probabilities_underflow():
    class Sure(nn.Module):
        def forward(self, images):
            return torch.cat((images[:, :1] * 0 + 500, images[:, :1] * 0 - 500), 1)

    logits = predict_logits(Sure(), torch.rand(1, 3, 4, 4), flip=True)
    torch.testing.assert_close(logits[0, 1], torch.full((4, 4), -1000.0))


class Noise:
    """Noise, which no class has anything to do with; turned round on request."""

    eval_classes = (0, 1, 2)

    def __init__(self, step: int = 1) -> None:
        self.step = step

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (16, 24, 3), np.uint8)
        label = rng.integers(0, 3, (16, 24), np.uint8)
        return Sample(image[:, :: self.step].copy(), label[:, :: self.step].copy(), "noise")


def test_a_score_with_flipping_does_not_see_which_way_round_the_scenes_are():
    class OneSided(nn.Module):
        """Weighs the left and the right of a cell differently."""

        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 19, 4, stride=4, bias=False)

        def forward(self, images):
            return self.convolution(images - 0.5)

    network = OneSided()

    def counts(step, flip):
        return evaluate(network, Noise(step), flip=flip).confusion.matrix

    assert torch.equal(counts(1, True), counts(-1, True))
    assert not torch.equal(counts(1, False), counts(-1, False))


def test_windows_are_two_thirds_of_a_crop_apart_unless_told():
    assert SlidingWindow.of((9, 512), batch=3) == SlidingWindow(
        crop=(9, 512), stride=(6, 341), batch=3
    )
    assert SlidingWindow.of((1, 9), (1, 2)) == SlidingWindow(crop=(1, 9), stride=(1, 2))
    assert SlidingWindow.of((1, 1)).stride == (1, 1)


def test_images_of_another_shape_are_refused(network):
    with pytest.raises(ValueError, match=r"images must be of shape \[B, 3, H, W\]"):
        predict_logits(network, torch.rand(3, 24, 48))


def test_an_empty_batch_of_windows_is_refused():
    with pytest.raises(ValueError, match="window_batch must be a positive count; got 0"):
        SlidingWindow(crop=(4, 4), stride=(4, 4), batch=0)


@pytest.mark.parametrize(("crop", "stride"), [((0, 4), (1, 1)), ((4, 4), (5, 4)), ((4, 4), (0, 4))])
def test_windows_that_leave_pixels_out_are_refused(crop, stride):
    with pytest.raises(ValueError, match=r"^(crop|stride) must be"):
        SlidingWindow(crop=crop, stride=stride)


def test_modes_of_all_submodules_survive(network):
    network.train()
    network.body[1].eval()
    before = [m.training for m in network.modules()]
    with pytest.raises(RuntimeError), evaluating(network):
        assert not any(m.training for m in network.modules())
        raise RuntimeError
    assert [m.training for m in network.modules()] == before


def test_score_does_not_depend_on_the_batch_size(network, dataset):
    sizes = []
    network.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    results = [evaluate(network, dataset, batch_size=n) for n in (1, 3, 100)]
    assert sizes == [*[1] * 7, 3, 3, 1, 7]
    assert all(torch.equal(r.confusion.matrix, results[0].confusion.matrix) for r in results)
    labelled = sum(int((s.label != 255).sum()) for s in map(dataset.__getitem__, range(7)))
    assert int(results[0].confusion.matrix.sum()) == labelled
    assert set(results[0].iou) <= {"road", "sidewalk", "building", "sky", "car"}
    assert network.training


def test_score_is_percent_over_the_benchmarks_classes(dataset):
    class Perfect(nn.Module):
        """Reads the class off the palette's colour."""

        def forward(self, images):
            from pipa_fast.data.labels import PALETTE

            palette = torch.from_numpy(PALETTE).float() / 255
            return -(images[:, None] - palette[None, :, :, None, None]).abs().sum(2)

    result = evaluate(Perfect(), dataset)
    assert result.miou == 100 and set(result.iou.values()) == {100.0}
    assert result.summary() == {"miou": 100.0, "iou": result.iou}


def test_images_and_labels_of_mixed_sizes(network):
    class Mixed:
        eval_classes = (0,)
        sizes = ((8, 8), (8, 8), (16, 8), (8, 8))

        def __len__(self):
            return 4

        def __getitem__(self, index):
            h, w = self.sizes[index]
            return Sample(np.zeros((h, w, 3), np.uint8), np.zeros((2 * h, 2 * w), np.uint8), "")

    assert int(evaluate(network, Mixed()).confusion.matrix.sum()) == 4 * (3 * 64 + 128)


def test_large_images_come_in_smaller_batches(monkeypatch):
    sizes = [(8, 16)] * 5 + [(12, 16)] * 3 + [(16, 16)] * 3 + [(32, 32)] * 2
    samples = [Sample(np.zeros((*s, 3), np.uint8), np.zeros(s, np.uint8), "") for s in sizes]
    monkeypatch.setattr(inference, "PIXELS", 8 * 16)
    batches = inference._batches(samples, range(len(samples)), 4)
    assert [len(batch) for batch in batches] == [4, 1, 2, 1, 2, 1, 1, 1]


def test_logits_of_one_batch_at_a_time(network, dataset, monkeypatch):
    """They are the largest thing in memory: 3.7 GB for two images of 6000 x 4000."""
    before, predict = [], inference.predict_logits

    def watched(*arguments, **settings):
        assert all(logits() is None for logits in before)
        made = predict(*arguments, **settings)
        before.append(weakref.ref(made))
        return made

    monkeypatch.setattr(inference, "predict_logits", watched)
    evaluate(network, dataset, batch_size=2)
    assert len(before) == 4


def test_autocast_stays_close(network, dataset):
    exact, rough = evaluate(network, dataset), evaluate(network, dataset, dtype=torch.bfloat16)
    moved = (exact.confusion.matrix - rough.confusion.matrix).abs().sum()
    assert moved <= 0.05 * exact.confusion.matrix.sum()


def test_an_empty_dataset_is_refused(network, dataset):
    dataset.length = 0
    with pytest.raises(ValueError, match="dataset must be at least one image"):
        evaluate(network, dataset)


def _score_on_rank(rank: int, folder: Path, network, dataset) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen = []
    original = type(dataset).__getitem__

    class Watched(type(dataset)):
        def __getitem__(self, index):
            seen.append(index)
            return original(self, index)

    dataset.__class__ = Watched
    result = evaluate(network, dataset)
    torch.save((result.miou, result.confusion.matrix, seen), folder / f"{rank}.pt")
    alone = evaluate(network, dataset, shard=False)
    assert torch.equal(alone.confusion.matrix, result.confusion.matrix)
    distributed.end()


def test_two_ranks_share_the_images_and_agree(network, dataset, tmp_path):
    alone: EvalResult = evaluate(network, dataset)
    arguments = (tmp_path, network, dataset)
    mp.start_processes(_score_on_rank, arguments, nprocs=2, start_method="fork")
    for rank in range(2):
        miou, matrix, seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert miou == alone.miou and torch.equal(matrix, alone.confusion.matrix)
        assert seen[: len(range(rank, 7, 2))] == list(range(rank, 7, 2))


def test_to_batch_scales_and_moves_channels():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    batch = to_batch([image, image])
    assert batch.shape == (2, 3, 2, 4) and batch.dtype == torch.float32
    assert batch[1, 2, 1, 3] == pytest.approx(23 / 255)


def test_the_next_images_are_read_while_a_network_is_at_earlier_ones():
    """The network waits for the second image, which nobody asked for yet."""
    read = [threading.Event() for _ in range(9)]

    class Images:
        eval_classes = (0, 1)

        def __len__(self):
            return len(read)

        def __getitem__(self, index):
            read[index].set()
            label = np.full((2, 2), index % 2, np.uint8)
            return Sample(np.full((2, 2, 3), index, np.uint8), label, str(index))

    class Network(nn.Module):
        def forward(self, images):
            index = round(255 * images[0, 0, 0, 0].item())
            assert all(event.wait(10) for event in read[index + 1 : index + 2])
            right = F.one_hot(torch.full((1, 2, 2), index % 2), 2)
            return right.permute(0, 3, 1, 2).float()

    assert evaluate(Network(), Images(), batch_size=1, names=("a", "b")).miou == 100


def test_an_image_that_cannot_be_read_is_told():
    def read(index):
        raise ValueError(f"image {index}")

    with pytest.raises(ValueError, match="image 0"):
        list(inference.read_ahead(read, range(9)))
