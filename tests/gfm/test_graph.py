"""Graphs from batches: labels, masks, precision, and moving between dtypes."""

import numpy as np
import torch

from gfm.data.ragged import RaggedBatch
from gfm.data.structure import Structure
from gfm.model.graph import graph_from_batch, graph_from_structures

CELL, PBC = 4.0 * np.eye(3), np.ones(3, dtype=bool)


def pair(**labels) -> Structure:
    return Structure(np.array([1, 8], np.uint8), np.array([[0, 0, 0], [0, 0, 1.0]]), CELL, PBC, **labels)


def test_labels_that_are_absent_are_masked_and_never_nan():
    full = pair(energy=-54321.0123456789, forces=np.ones((2, 3)), stress=np.eye(3), charge=-1, dataset=3)
    graph = graph_from_batch(RaggedBatch.from_structures([full, pair()]), 3.0)
    assert graph.num_graphs == 2
    assert graph.labels["energy"].dtype == torch.float64
    assert graph.labels["energy"].tolist() == [-54321.0123456789, 0.0]
    for name in ("energy", "forces", "stress", "charge"):
        assert graph.masks[name].tolist() == [True, False]
    assert graph.masks["spin"].tolist() == [False, False]
    assert all(values.isfinite().all() for values in graph.labels.values())
    assert graph.charge.tolist() == [-1.0, 0.0]
    assert graph.dataset.tolist() == [3, 0]
    assert graph.graph_index.tolist() == [0, 0, 1, 1]


def test_a_label_nobody_has_is_left_out():
    graph = graph_from_batch(RaggedBatch.from_structures([pair()]), 3.0)
    assert graph.labels == {}
    assert not graph.masks["energy"].any()


def test_edges_are_sorted_by_target_and_vectors_hold_periodic_images():
    graph = graph_from_batch(RaggedBatch.from_structures([pair(), pair()]), 3.5, dtype=torch.float64)
    assert (graph.targets.diff() >= 0).all()
    assert set(graph.vectors.norm(dim=1).tolist()) == {1.0, 3.0}
    assert graph.num_edges == 8


def test_positions_in_double_precision_far_from_the_origin_give_exact_vectors():
    far = pair()
    far.positions = far.positions + 123456.789
    graph = graph_from_structures([far], 2.0)
    assert graph.vectors.dtype == torch.float32
    torch.testing.assert_close(graph.vectors.norm(dim=1), torch.ones(2), rtol=1e-6, atol=0)


def test_casting_keeps_indices_and_the_energy():
    graph = graph_from_batch(RaggedBatch.from_structures([pair(energy=1.0, forces=np.ones((2, 3)))]), 3.0)
    wide = graph.to(dtype=torch.float64)
    assert wide.vectors.dtype == wide.labels["forces"].dtype == wide.cell.dtype == torch.float64
    assert wide.sources.dtype == torch.int64
    narrow = graph.to("cpu", torch.bfloat16)
    assert narrow.labels["energy"].dtype == torch.float64
    assert narrow.masks["energy"].dtype == torch.bool


def test_a_batch_without_edges_or_structures_is_a_graph():
    atom = Structure(np.array([6], np.uint8), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    assert graph_from_structures([atom], 5.0).num_edges == 0
    empty = graph_from_batch(RaggedBatch.from_structures([]), 5.0)
    assert (empty.num_graphs, empty.num_edges, len(empty.numbers)) == (0, 0, 0)
