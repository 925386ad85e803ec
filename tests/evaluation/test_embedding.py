# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from pipa_fast.data.sample import Sample
from pipa_fast.evaluation.embedding import (
    Embeddings,
    classifier_of,
    collect_embeddings,
    pixel_features,
    project,
)
from pipa_fast.models import HRDAConfig, ModelConfig, build_network


def test_features_are_what_the_classifier_reads(network):
    assert classifier_of(network) is network.classifier
    network.eval()
    images = torch.rand(2, 3, 24, 48)
    features = pixel_features(network, images)
    assert features.shape == (2, 16, 6, 12)
    torch.testing.assert_close(network.classifier(features), network(images).logits)
    assert not network.classifier._forward_pre_hooks
    with pytest.raises(ValueError, match="network must have a layer with 19 outputs"):
        classifier_of(nn.Conv2d(3, 4, 1))


def test_sampled_pixels_are_balanced_labelled_and_the_same_for_two_networks(
    network, make_network, dataset
):
    a = collect_embeddings(network, dataset, num_images=7, per_class=21)
    b = collect_embeddings(make_network(1), dataset, num_images=7, per_class=21)
    assert torch.equal(a.labels, b.labels) and not torch.equal(a.features, b.features)
    classes, counts = a.labels.unique(return_counts=True)
    assert set(classes.tolist()) <= set(dataset.eval_classes)
    assert int(counts.max()) <= 21
    norms = a.features.norm(dim=1)
    assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()


def test_labels_are_those_of_the_cells(dataset):
    """With the image itself as features, a pixel's feature is its class's colour."""

    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Conv2d(3, 19, 1)

        def forward(self, images):
            return self.classifier(images[:, :, 2::4, 2::4])

    from pipa_fast.data.labels import PALETTE

    sampled = collect_embeddings(Colours(), dataset, num_images=3)
    expected = torch.nn.functional.normalize(torch.from_numpy(PALETTE).float()[sampled.labels])
    torch.testing.assert_close(sampled.features, expected)


def test_principal_axes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * [5, 3, 1, 1, 0.5, 0.1]
    view = project(Embeddings(torch.from_numpy(x).float(), torch.zeros(200).long()))
    reference = PCA(2).fit(x)
    np.testing.assert_allclose(
        np.abs(view.points.numpy()), np.abs(reference.transform(x)), rtol=1e-3, atol=1e-4
    )
    assert view.explained == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-5)


def test_nearest_centre_tells_apart_from_mixed():
    labels = torch.arange(60) % 3
    apart = torch.eye(8)[labels] + 0.01 * torch.randn(
        60, 8, generator=torch.Generator().manual_seed(0)
    )
    assert project(Embeddings(apart, labels)).nearest_centre == 1
    assert project(Embeddings(apart, labels.sort().values)).nearest_centre < 1
    same = project(Embeddings(torch.ones(60, 8), labels))
    assert torch.isfinite(same.points).all() and same.explained == 0


def test_too_few_pixels_are_refused():
    with pytest.raises(ValueError, match="embeddings must be at least three pixels"):
        project(Embeddings(torch.ones(2, 8), torch.zeros(2).long()))


def test_hrdas_features_are_its_contexts():
    hrda = HRDAConfig(enabled=True, detail=(32, 32))
    network = build_network(ModelConfig(encoder="streets_s", head="light", hrda=hrda)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.head(network.encode(network.context(images)))
        assert torch.equal(pixel_features(network, images), expected)


@pytest.mark.parametrize("size", [(75, 131), (40, 72)])
def test_hrda_sees_images_of_any_size(size):
    """A finished run's report must not end on images that its scores were taken of."""

    class Odd:
        eval_classes = (0, 1)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8), "odd")

    hrda = HRDAConfig(enabled=True, detail=(32, 32))
    network = build_network(ModelConfig(encoder="streets_s", head="light", hrda=hrda))
    found = collect_embeddings(network, Odd(), per_class=10**6)
    # cells of 8 pixels, of which the last ones show a part of the image
    assert len(found.labels) == -(-size[0] // 8) * -(-size[1] // 8)
