# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from pipa_fast.models import ModelConfig
from pipa_fast.models.encoders import MIT_SIZES, MitEncoder, build_encoder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A MiT-B0 as transformers saves it, and the same with a classifier on top."""
    from transformers import SegformerConfig, SegformerForImageClassification, SegformerModel

    folder = tmp_path_factory.mktemp("mit")
    torch.manual_seed(5)
    SegformerModel(SegformerConfig()).save_pretrained(folder / "encoder")
    SegformerForImageClassification(SegformerConfig()).save_pretrained(folder / "classifier")
    return folder


def test_features_have_the_promised_widths_and_strides():
    images = torch.rand(1, 3, 64, 96)
    for name in ("streets_s", "mit_b0"):
        encoder = build_encoder(ModelConfig(encoder=name))
        shapes = [tuple(x.shape[1:]) for x in encoder(images)]
        expected = zip(encoder.channels, encoder.strides, strict=True)
        assert shapes == [(c, 64 // s, 96 // s) for c, s in expected]


@pytest.mark.parametrize(
    ("name", "millions"), [("mit_b0", 3.32), ("mit_b1", 13.15), ("mit_b5", 81.44)]
)
def test_parameter_counts_are_the_papers(name, millions):
    with torch.device("meta"):
        encoder = MitEncoder(name)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_constants_of_the_layer_norms():
    found: dict[float, set[str]] = {}
    for path, module in MitEncoder("mit_b0").model.named_modules():
        if isinstance(module, nn.LayerNorm):
            kind = [part for part in path.split(".") if not part.isdigit()]
            found.setdefault(module.eps, set()).add(".".join(kind[1:]))
    assert found == {
        1e-5: {
            "patch_embeddings.layer_norm",
            "blocks.attention.sequence_reduction.layer_norm",
        },
        1e-6: {"blocks.layernorm_before", "blocks.layernorm_after", "layer_norm"},
    }


def test_stochastic_depth_grows_to_the_setting():
    rates = [
        module.drop_prob
        for module in MitEncoder("mit_b0", drop_path=0.2).modules()
        if type(module).__name__ == "SegformerDropPath"
    ]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(1, 8)])


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_stored_weights_are_loaded_whole(stored, kind):
    from transformers import SegformerForImageClassification, SegformerModel

    encoder = MitEncoder("mit_b0", weights=str(stored / kind), drop_path=0.1)
    if kind == "encoder":
        expected = SegformerModel.from_pretrained(stored / kind)
    else:
        expected = SegformerForImageClassification.from_pretrained(stored / kind).segformer
    for name, parameter in expected.named_parameters():
        assert torch.equal(encoder.model.get_parameter(name), parameter), name
    assert encoder.training and encoder.model.training
    assert any(type(m).__name__ == "SegformerDropPath" for m in encoder.modules())


def test_weights_of_another_size_are_refused(stored):
    with pytest.raises(ValueError, match="must be of mit_b1, with hidden_sizes"):
        MitEncoder("mit_b1", weights=str(stored / "encoder"))


def test_weights_that_are_not_there_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for weights in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="model.weights must be a folder"):
            MitEncoder("mit_b0", weights=str(weights))


@pytest.mark.parametrize(("change", "message"), [("lack", "1 missing"), ("extra", "1 unexpected")])
def test_weights_that_are_incomplete_or_have_more_are_refused(stored, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    state = load_file(stored / "encoder" / "model.safetensors")
    if change == "lack":
        del state[next(iter(state))]
    else:
        state["blocks.of.another"] = torch.zeros(2)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((stored / "encoder" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=message):
        MitEncoder("mit_b0", weights=str(tmp_path))


def test_sizes_are_those_of_the_settings():
    assert all(ModelConfig(encoder=name) for name in MIT_SIZES)
