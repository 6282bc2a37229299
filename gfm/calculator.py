"""ASE calculators of a saved model and of an ensemble.

```python
atoms.calc = ModelCalculator("runs/first/model", dataset="mptrj")
atoms.get_potential_energy()
atoms.calc = EnsembleCalculator("runs/ensemble", dataset="mptrj")
atoms.get_forces(), atoms.calc.uncertainty.forces
```
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from gfm.data.structure import Structure
from gfm.errors import ConfigError, DataError, MissingDataError
from gfm.runtime.registry import suggest

if TYPE_CHECKING:
    from ase import Atoms

    from gfm.model.graph import Graph
    from gfm.model.potential import Potential

__all__ = ["EnsembleCalculator", "ModelCalculator", "Uncertainty", "UncertaintyWarning"]


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


class UncertaintyWarning(UserWarning):
    """A prediction is less certain than on nearly all of the validation structures."""


@dataclass(frozen=True)
class Uncertainty:
    """Calibrated standard deviations of one prediction.

    Attributes:
        formula: Of the structure.
        energy: Of the total energy, eV.
        energy_per_atom: The same for each atom, eV/atom.
        forces: Of the force components (N, 3), eV/angstrom.
        largest_force: The largest of these, eV/angstrom.
        thresholds: What 1 % of the validation structures exceed: ``energy`` in eV/atom, ``forces`` (largest
            component) in eV/angstrom.
        beyond: Outputs that exceed their threshold.
    """

    formula: str
    energy: float
    energy_per_atom: float
    forces: NDArray[np.float64]
    largest_force: float
    thresholds: dict[str, float]
    beyond: tuple[str, ...]


class EnsembleCalculator(Calculator):
    """Mean energy and forces of an ensemble, with calibrated uncertainties.

    ``results`` hold energy (eV), forces (eV/angstrom), ``energy_std`` (eV) and ``forces_std`` (N, 3)
    (eV/angstrom); `uncertainty` holds them with their thresholds.

    Attributes:
        potentials: The members, in evaluation mode.
        dataset: Name of the dataset whose references, heads and calibration it uses.
        conservative: Whether the forces of all members are gradients of their energies.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]  # type: ignore[misc]

    def __init__(
        self, path: str | Path, dataset: str | None = None, *, device: str = "cpu", **kwargs: Any
    ) -> None:
        """Load an ensemble.

        Args:
            path: Folder with ``ensemble.json``, as ``gfm ensemble evaluate`` left it.
            dataset: The dataset whose theory to follow; may be left out where the members have one only.
            device: Where to run.
            **kwargs: Passed to ASE's Calculator.

        Raises:
            MissingDataError: There is no ensemble in the folder, or it is not calibrated yet.
            ConfigError: The members have several datasets and none is named, or none has that name.
        """
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        from gfm.model.build import load_model
        from gfm.model.ensemble_card import find_calibration, read_ensemble

        card = read_ensemble(path)
        calibration = card["calibration"]
        if not calibration or not {"energy", "forces"} <= calibration.keys():
            raise MissingDataError(
                f"{path}: energies and forces are not both calibrated; run `gfm ensemble evaluate` on a "
                "dataset that has both"
            )
        self.potentials = [load_model(Path(path) / member["model"], device) for member in card["members"]]
        self.device = device
        shared = [
            name
            for name in self.potentials[0].dataset_names
            if all(name in potential.dataset_names for potential in self.potentials)
        ]
        self.dataset = choose_dataset(tuple(shared), dataset)
        self.conservative = all(potential.config.forces == "gradient" for potential in self.potentials)
        self._calibration = {
            output: find_calibration(calibration, output, self.dataset) for output in ("energy", "forces")
        }
        self._warned = False

    @property
    def uncertainty(self) -> Uncertainty:
        """Uncertainties of the last calculation.

        Raises:
            RuntimeError: Nothing has been calculated yet.
        """
        if self.atoms is None or "energy_std" not in self.results:
            raise RuntimeError("nothing has been calculated yet: ask for an energy or forces first")
        per_atom = self.results["energy_std"] / len(self.atoms)
        largest = float(self.results["forces_std"].max(initial=0.0))
        thresholds = {output: float(entry["threshold"]) for output, entry in self._calibration.items()}
        found = {"energy": per_atom, "forces": largest}
        return Uncertainty(
            formula=str(self.atoms.symbols),
            energy=self.results["energy_std"],
            energy_per_atom=per_atom,
            forces=self.results["forces_std"],
            largest_force=largest,
            thresholds=thresholds,
            beyond=tuple(output for output, value in found.items() if value > thresholds[output]),
        )

    def calculate(
        self,
        atoms: "Atoms | None" = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results`` for the atoms; warn, once, when they are beyond a threshold of `uncertainty`.

        Raises:
            DataError: An element was not in the training data of the dataset.
        """
        import torch

        from gfm.model.ensemble_card import calibrated_sigma

        super().calculate(atoms, properties or ["energy"], system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        graphs: dict[Any, Graph] = {}
        energies, forces = [], []
        for potential in self.potentials:
            index = potential.dataset_names.index(self.dataset)
            check_elements(potential, index, self.atoms.numbers)
            config, dtype = potential.config, next(potential.parameters()).dtype
            # members that see the same neighbours share one graph
            key = (config.cutoff, config.max_neighbors, dtype)
            if key not in graphs:
                graphs[key] = graph_from_atoms(self.atoms, index, potential, self.device)
            graph = replace(graphs[key], dataset=torch.full_like(graphs[key].dataset, index))
            with torch.no_grad():
                prediction = potential(graph)
            energies.append(float(prediction.energy[0]))
            forces.append(prediction.forces.detach().double().cpu().numpy())
        num_atoms = len(self.atoms)
        energy_spread = np.std(np.array(energies) / num_atoms, ddof=1)
        energy_sigma = calibrated_sigma(self._calibration["energy"], np.asarray(energy_spread))
        energy = float(np.mean(energies))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": np.mean(forces, axis=0),
            "energy_std": num_atoms * float(energy_sigma),
            "forces_std": calibrated_sigma(self._calibration["forces"], np.std(forces, axis=0, ddof=1)),
        }
        self._warn()

    def _warn(self) -> None:
        uncertainty = self.uncertainty
        if not uncertainty.beyond or self._warned:
            return
        self._warned = True
        found = {
            "energy": (uncertainty.energy_per_atom, "eV/atom for the energy"),
            "forces": (uncertainty.largest_force, "eV/angstrom for the largest force component"),
        }
        parts = [
            f"{found[output][0]:.3g} {found[output][1]} (limit {uncertainty.thresholds[output]:.3g})"
            for output in uncertainty.beyond
        ]
        warnings.warn(
            f"{uncertainty.formula}: the uncertainty is {' and '.join(parts)}, more than on 99 % of the "
            "validation structures: do not trust this prediction without a check. Further ones do not warn; "
            "see `calculator.uncertainty`.",
            UncertaintyWarning,
            stacklevel=2,
        )


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
    """Return the graph of one structure, in the dtype of a model; positions are taken in double precision.

    Raises:
        DataError: There are no atoms, or positions or cell cannot be used.
    """
    from gfm.model.graph import graph_from_structures

    if len(atoms) == 0:
        raise DataError("there are no atoms to calculate")
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
