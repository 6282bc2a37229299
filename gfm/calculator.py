"""ASE calculator of a saved model.

```python
atoms.calc = ModelCalculator("runs/first/model", dataset="mptrj")
atoms.get_potential_energy()
```
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.errors import ConfigError, DataError
from gfm.runtime.registry import suggest

if TYPE_CHECKING:
    from ase import Atoms

    from gfm.model.graph import Graph
    from gfm.model.potential import Potential

__all__ = ["ModelCalculator"]


class ModelCalculator(Calculator):
    """Energy and forces, and stress where forces are gradients, in ASE's units.

    Attributes:
        potential: The model, in evaluation mode.
        dataset: Name of the dataset whose references and heads it uses.
        conservative: Whether forces are the gradient of the energy. Where they are not, relaxations work but
            molecular dynamics does not conserve energy.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]  # type: ignore[misc]

    def __init__(
        self, path: str | Path, dataset: str | None = None, *, device: str = "cpu", **kwargs: Any
    ) -> None:
        """Load a model.

        Args:
            path: Folder with ``model.json`` and ``model.safetensors``.
            dataset: The dataset whose theory to follow; may be left out where the model has one only.
            device: Where to run.
            **kwargs: Passed to ASE's Calculator.

        Raises:
            MissingDataError: There is no model in the folder.
            ConfigError: The model has several datasets and none is named, or none has that name.
        """
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        from gfm.model.build import load_model

        self.potential = load_model(path, device)
        self.device = device
        self.dataset = choose_dataset(self.potential.dataset_names, dataset)
        self.conservative = self.potential.config.forces == "gradient"

    def calculate(
        self,
        atoms: "Atoms | None" = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results`` for the atoms.

        Raises:
            DataError: An element was not in the training data of the dataset.
        """
        import torch

        super().calculate(atoms, properties or ["energy"], system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        index = self.potential.dataset_names.index(self.dataset)
        check_elements(self.potential, index, self.atoms.numbers)
        periodic = bool(self.atoms.pbc.all())
        graph = graph_from_atoms(self.atoms, index, self.potential, self.device)
        with torch.no_grad():
            prediction = self.potential(graph, stress=self.conservative and periodic)
        energy = float(prediction.energy[0])
        forces = prediction.forces.double().cpu().numpy()
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if prediction.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(prediction.stress[0].double().cpu().numpy())


def choose_dataset(names: tuple[str, ...], wanted: str | None) -> str:
    """Return the dataset asked for, or the only one.

    Raises:
        ConfigError: None is named and there are several, or none has that name.
    """
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise ConfigError(f"the model has several datasets; choose one of {', '.join(names)}")
    if wanted not in names:
        raise ConfigError(
            f"the model has no dataset {wanted!r}.{suggest(wanted, names)} It has {', '.join(names)}"
        )
    return wanted


def check_elements(potential: "Potential", dataset: int, numbers: NDArray[Any]) -> None:
    """Refuse elements that the training data of a dataset never had.

    Raises:
        DataError: There is such an element; the text names it, and the datasets that have all elements.
    """
    seen = potential.seen.cpu().numpy()
    present = np.unique(numbers)
    unknown = [chemical_symbols[z] for z in present if not seen[dataset, z]]
    if not unknown:
        return
    others = [name for name, row in zip(potential.dataset_names, seen, strict=True) if row[present].all()]
    advice = f"; these datasets have all of them: {', '.join(others)}" if others else ""
    raise DataError(
        f"the model was never trained on {', '.join(unknown)} in {potential.dataset_names[dataset]!r}, "
        f"so its result would mean nothing{advice}"
    )


def graph_from_atoms(atoms: "Atoms", dataset: int, potential: "Potential", device: str = "cpu") -> "Graph":
    """Return the graph of one structure, in the dtype of a model; positions are taken in double precision."""
    from gfm.model.graph import graph_from_structures

    structure = Structure(
        numbers=atoms.numbers.astype(np.uint8),
        positions=atoms.positions,
        cell=np.array(atoms.cell, dtype=np.float64),
        pbc=atoms.pbc,
        dataset=dataset,
    )
    config = potential.config
    dtype = next(potential.parameters()).dtype
    return graph_from_structures([structure], config.cutoff, config.max_neighbors, dtype=dtype).to(device)
