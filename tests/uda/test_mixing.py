# SPDX-License-Identifier: Apache-2.0
import torch

from pipa_fast.uda.mixing import block_masks, class_masks, mix


def labels_of(*classes, size=(4, 8)):
    return torch.stack([torch.full(size, c) for c in classes])


def masks(labels, index=None, seed=0, iteration=3):
    index = torch.arange(len(labels)) if index is None else index
    return class_masks(labels, seed=seed, iteration=torch.tensor(iteration), index=index)


def test_half_of_the_batch_classes_rounded_up():
    labels = torch.arange(5).repeat_interleave(8).view(1, 5, 8).repeat(3, 1, 1)
    chosen = masks(labels)
    for b in range(3):
        assert len(labels[b][chosen[b]].unique()) == 3


def test_a_class_is_chosen_whole():
    labels = torch.randint(0, 6, (2, 8, 8))
    chosen = masks(labels)
    for b in range(2):
        for c in range(6):
            assert len(chosen[b][labels[b] == c].unique()) <= 1


def test_unlabelled_counts_as_a_class():
    labels = labels_of(255, 255)
    assert masks(labels).all()  # one class in the batch: half of one, rounded up


def test_the_choice_is_the_images_own():
    labels = torch.arange(8).repeat(2, 8, 1)
    whole = masks(labels)
    alone = masks(labels[1:], index=torch.tensor([1]))
    assert torch.equal(whole[1:], alone)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, masks(labels, seed=1))


def test_every_class_is_chosen_equally_often():
    labels = torch.arange(4).repeat(1, 4, 1)
    counts = torch.zeros(4)
    for iteration in range(400):
        counts += masks(labels, iteration=iteration)[0, 0].float()
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 16.3  # 0.1 % of fair draws exceed it (3 degrees of freedom)


def test_mix_pastes_pixels_labels_and_weights():
    mask = torch.tensor([[[True, False]]])
    source = (torch.zeros(1, 3, 1, 2), torch.full((1, 1, 2), 4))
    target = (torch.ones(1, 3, 1, 2), torch.full((1, 1, 2), 7), torch.full((1, 1, 2), 0.25))
    mixed = mix(mask, source, target)
    assert mixed.images[0, :, 0].tolist() == [[0, 1]] * 3
    assert mixed.labels.tolist() == [[[4, 7]]]
    assert mixed.weights.tolist() == [[[1.0, 0.25]]]


def shown(images, ratio, block=8, index=None, iteration=0):
    index = torch.arange(len(images)) if index is None else index
    place = {"seed": 0, "iteration": torch.tensor(iteration), "index": index}
    return block_masks(images, block=block, ratio=ratio, **place)


def test_the_hidden_share_of_whole_blocks_is_the_ratio():
    images = torch.zeros(8, 3, 256, 512)
    mask = shown(images, 0.7)
    blocks = mask.view(8, 32, 8, 64, 8).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert abs(float(blocks.mean()) - 0.3) < 0.02


def test_blocks_are_cut_at_the_border_and_drawn_by_image_and_step():
    mask = shown(torch.zeros(2, 3, 20, 30), 0.5)
    assert mask.shape == (2, 1, 20, 30)
    assert not torch.equal(mask[0], mask[1])
    alone = shown(torch.zeros(1, 3, 20, 30), 0.5, index=torch.tensor([1]))
    assert torch.equal(alone[0], mask[1])
    assert not torch.equal(mask, shown(torch.zeros(2, 3, 20, 30), 0.5, iteration=1))


def test_no_block_is_hidden_at_0_and_every_one_at_1():
    images = torch.zeros(1, 3, 16, 16)
    assert shown(images, 0.0).all() and not shown(images, 1.0).any()
