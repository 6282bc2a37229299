"""The loss: what it is, what absent labels do to it, what alarms it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gfm.model.build import build_potential
from gfm.model.config import ModelConfig
from gfm.model.graph import Graph, graph_from_batch
from gfm.model.potential import Potential
from store import open_dataset
from train.config import LossConfig
from train.evaluate import error_sums, metrics_of_sums
from train.loss import Objective, label_counts


def _parts(path: Path, forces: str = "direct") -> tuple[Potential, Graph]:
    dataset = open_dataset(path)
    config = ModelConfig(hidden=8, num_layers=1, cutoff=4.0, num_radial=4, forces=forces)
    potential = build_potential(config, dataset.dataset_names, dataset.references, seed=1).double().train()
    return potential, graph_from_batch(dataset.batch(np.arange(24)), 4.0, dtype=torch.float64)


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_it_is_the_weighted_mean_of_what_is_labelled(dataset_path: Path, forces: str) -> None:
    potential, graph = _parts(dataset_path, forces)
    has_energy, has_forces = graph.masks["energy"], graph.masks["forces"]
    assert 0 < has_energy.sum() < 24
    assert 0 < has_forces.sum() < 24
    loss = Objective(potential, LossConfig(energy=2.0, forces=3.0))(graph, label_counts(graph)).detach()
    prediction = potential(graph)
    energy = ((prediction.energy - graph.labels["energy"]) / graph.num_atoms)[has_energy].abs().mean()
    atoms = has_forces[graph.graph_index]
    force = (prediction.forces - graph.labels["forces"])[atoms].abs().mean()
    assert float(loss) == pytest.approx((2 * energy + 3 * force).item(), rel=1e-12)
    # What validation reports is the same number.
    potential.eval()
    sums = error_sums(potential, graph).numpy()
    metrics = metrics_of_sums(sums, potential.dataset_names, LossConfig(energy=2.0, forces=3.0))
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-12)
    assert metrics["energy_mae_mev_per_atom"] == pytest.approx(1e3 * energy.item(), rel=1e-12)
    assert metrics["structures"] == 24


def test_parts_of_a_batch_add_up_whoever_holds_them(dataset_path: Path) -> None:
    potential, graph = _parts(dataset_path)
    dataset = open_dataset(dataset_path)
    objective = Objective(potential, LossConfig())
    counts = label_counts(graph)
    whole = objective(graph, counts).item()
    for split in ([5], [1, 2, 23], [12]):
        parts = [
            graph_from_batch(dataset.batch(rows), 4.0, dtype=torch.float64)
            for rows in np.split(np.random.default_rng(0).permutation(24), split)
        ]
        assert sum(label_counts(part) for part in parts).tolist() == counts.tolist()  # type: ignore[union-attr]
        assert sum(objective(part, counts).item() for part in parts) == pytest.approx(whole, rel=1e-12)


def test_without_any_label_it_is_zero_and_every_parameter_still_gets_a_gradient(dataset_path: Path) -> None:
    potential, graph = _parts(dataset_path)
    for mask in graph.masks.values():
        mask[:] = False
    loss = Objective(potential, LossConfig())(graph, label_counts(graph))
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None for parameter in potential.parameters())
    assert all(not parameter.grad.any() for parameter in potential.parameters())  # type: ignore[union-attr]


def test_an_infinite_loss_shows_in_every_gradient(dataset_path: Path) -> None:
    potential, graph = _parts(dataset_path)
    graph.labels["energy"][graph.masks["energy"].nonzero()[0]] = torch.inf
    Objective(potential, LossConfig())(graph, label_counts(graph)).backward()
    assert all(parameter.grad.isnan().all() for parameter in potential.parameters())  # type: ignore[union-attr]
