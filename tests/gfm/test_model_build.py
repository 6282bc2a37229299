"""Building, saving and loading a potential; what takes part in training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gfm.data.structure import Structure
from gfm.errors import ConfigError, CorruptDataError, MissingDataError
from gfm.model.build import LAYERS, ModelConfig, build_potential, load_card, load_model, save_model
from gfm.model.graph import Graph, graph_from_structures
from gfm.model.potential import Potential
from gfm.runtime.config import parse_config

REFERENCES = np.zeros((2, 119))
REFERENCES[0, [1, 8]] = [-13.6, -2040.123456789012]
REFERENCES[1, [1, 29]] = [-3.4, -3.5]


def small(**options) -> ModelConfig:
    return ModelConfig(**{"hidden": 12, "num_layers": 2, "cutoff": 4.0, **options})


def build(config: ModelConfig | None = None, **options) -> Potential:
    return build_potential(config or small(), ["water", "metal"], REFERENCES, **{"seed": 3, **options})


def make_graph(*datasets: int, dtype=torch.float32) -> Graph:
    rng = np.random.default_rng(0)
    structures = [
        Structure(
            np.array([8, 1, 1], np.uint8),
            rng.normal(size=(3, 3)),
            np.zeros((3, 3)),
            np.zeros(3, bool),
            dataset=d,
        )
        for d in datasets
    ]
    return graph_from_structures(structures, 4.0, dtype=dtype)


@pytest.mark.parametrize("layer", LAYERS.names())
@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("heads", ["shared", "per-dataset"])
@pytest.mark.parametrize("radial_basis", ["bessel", "gaussian"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_every_parameter_receives_a_gradient_whatever_the_datasets_of_the_batch(
    layer, forces, heads, radial_basis, num_layers
):
    config = small(
        layer=layer, forces=forces, heads=heads, radial_basis=radial_basis, num_layers=num_layers, head_hidden=7
    )
    potential = build(config).train()
    for datasets in ([0, 1], [1]):
        potential.zero_grad()
        result = potential(make_graph(*datasets))
        (result.interaction_energy.square().sum() + result.forces.square().sum()).backward()
        gradients = {name: parameter.grad for name, parameter in potential.named_parameters()}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        if len(datasets) == 2:  # both branches are used, so no entry but those of absent elements is idle
            assert [name for name, gradient in gradients.items() if not gradient.abs().sum() > 0] == []


def test_training_lowers_the_loss_of_both_force_modes():
    for forces in ("direct", "gradient"):
        potential = build(small(forces=forces)).train()
        graph = make_graph(0, 1, 1)
        target = 5.0 * build(small(forces="gradient"), seed=9).eval()(graph).forces
        optimizer = torch.optim.Adam(potential.parameters(), 1e-2)
        losses = []
        for _ in range(25):
            optimizer.zero_grad()
            loss = (potential(graph).forces - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_the_seed_decides_the_weights_and_the_global_random_state_is_untouched():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = build(), build(), build(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    states = [potential.state_dict() for potential in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["trunk.embedding.weight"], states[2]["trunk.embedding.weight"])


def test_energies_are_references_plus_interaction_in_double_precision():
    potential = build().eval()
    graph = make_graph(0)
    with torch.no_grad():
        result = potential(graph)
    assert result.energy.dtype == torch.float64
    reference = -2040.123456789012 - 2 * 13.6
    assert float(result.energy[0] - result.interaction_energy[0].double()) == pytest.approx(reference, abs=1e-9)
    assert float(potential.reference_energy(graph)[0]) == pytest.approx(reference, abs=1e-9)


def test_references_stay_in_double_precision_when_the_model_is_cast():
    potential = build().double().float().to(torch.bfloat16)
    assert potential.references.dtype == torch.float64
    assert potential.references[0, 8].item() == -2040.123456789012
    assert potential.energy_scale.dtype == torch.bfloat16


def test_scales_multiply_what_the_heads_say():
    potential, scaled = build(), build(energy_scale=[1.0, 3.0], forces_scale=2.0)
    graph = make_graph(0, 1)
    with torch.no_grad():
        one, two = potential(graph), scaled(graph)
    torch.testing.assert_close(two.interaction_energy, one.interaction_energy * torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(two.forces, 2.0 * one.forces)


@pytest.mark.parametrize("layer", LAYERS.names())
@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_model_gives_the_same_numbers(tmp_path, layer, forces, dtype):
    config = small(layer=layer, forces=forces, max_neighbors=9)
    potential = build(config, energy_scale=0.3, forces_scale=[2, 3]).to(dtype).eval()
    save_model(potential, tmp_path / "model", extra={"note": "kept"})
    loaded = load_model(tmp_path / "model")
    assert loaded.config == config
    assert loaded.dataset_names == ("water", "metal")
    assert not loaded.training
    graph = make_graph(0, 1, dtype=dtype)
    with torch.no_grad():
        for mine, theirs in zip(potential(graph)[:3], loaded(graph)[:3], strict=True):
            assert torch.equal(mine, theirs)


def test_the_card_says_what_a_person_asks_first(tmp_path):
    save_model(build(energy_kinds=["total", "adsorption"]), tmp_path, extra={"epochs": 3})
    card = load_card(tmp_path)
    assert card["datasets"] == [
        {"name": "water", "energy_kind": "total", "elements": ["H", "O"]},
        {"name": "metal", "energy_kind": "adsorption", "elements": ["H", "Cu"]},
    ]
    assert card["extra"] == {"epochs": 3}
    assert card["num_parameters"] == sum(p.numel() for p in build().parameters())
    assert load_model(tmp_path).energy_kinds == ("total", "adsorption")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_what_is_not_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(MissingDataError, match=r"no model\.json"):
        load_model(tmp_path)
    save_model(build(), tmp_path)
    weights, card = tmp_path / "model.safetensors", tmp_path / "model.json"
    text = card.read_text()
    card.write_text(text.replace('"hidden": 12', '"hidden": 13'))
    with pytest.raises(
        CorruptDataError, match=r"trunk\.embedding\.weight is \(119, 12\), expected \(119, 13\)"
    ):
        load_model(tmp_path)
    card.write_text(json.dumps({**json.loads(text), "format_version": 99}))
    with pytest.raises(CorruptDataError, match="format version 99"):
        load_model(tmp_path)
    card.write_text(text)
    tensors = load_file(weights)
    del tensors["references"]
    save_file(tensors, weights)
    with pytest.raises(CorruptDataError, match="references is missing"):
        load_model(tmp_path)
    weights.write_bytes(b"\0" * 100)
    with pytest.raises(CorruptDataError, match="not readable"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(MissingDataError, match="no weights"):
        load_model(tmp_path)


def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'painn'"):
        parse_config(ModelConfig, {"layer": "pain"}, "here")
    with pytest.raises(ConfigError, match="Did you mean 'hidden'"):
        parse_config(ModelConfig, {"hiden": 3}, "here")
    with pytest.raises(ConfigError, match="references has shape"):
        build_potential(small(), ["one"], REFERENCES)
    with pytest.raises(ConfigError, match="different names"):
        build_potential(small(), ["one", "one"], REFERENCES)
    with pytest.raises(ConfigError, match="energy_scale"):
        build(energy_scale=[1.0, 0.0])
    with pytest.raises(ConfigError, match="not finite"):
        build_potential(small(), ["a", "b"], np.full((2, 119), np.nan))


def test_the_conservation_gap_is_zero_for_gradients_and_leaves_the_mode_alone():
    graph = make_graph(0, 1)
    direct = build().train()
    assert direct.conservation_gap(graph) > 1e-4
    assert direct.training
    assert build(small(forces="gradient")).conservation_gap(graph) == 0.0


def test_evaluation_keeps_no_graph_and_works_without_gradients():
    potential = build(small(forces="gradient")).eval()
    with torch.no_grad():
        result = potential(make_graph(0))
    assert not any(value.requires_grad for value in result[:3])
    assert not any(value.requires_grad for value in potential(make_graph(0))[:3])
    assert replace(make_graph(0), labels={}).num_graphs == 1


@pytest.mark.parametrize("layer", LAYERS.names())
@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_half_precision_autocast_stays_near_single_precision(layer, forces):
    potential, graph = build(small(layer=layer, forces=forces)).train(), make_graph(0, 1)
    exact = potential(graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = potential(graph)
    rough.forces.float().square().sum().backward()
    scale = exact.forces.abs().max()
    assert (rough.forces.float() - exact.forces).abs().max() < 0.1 * scale
