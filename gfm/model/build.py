"""From a configuration to a potential, and to and from a folder: safetensors and a JSON card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file, save_file

from gfm.errors import ConfigError, CorruptDataError, MissingDataError, ResourceError
from gfm.model.config import LAYERS, ModelConfig
from gfm.model.potential import NUM_SPECIES, Potential
from gfm.runtime.config import parse_config

__all__ = [
    "FORMAT_VERSION",
    "LAYERS",
    "ModelConfig",
    "build_potential",
    "load_card",
    "load_model",
    "save_model",
]

FORMAT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "model.json"


def build_potential(
    config: ModelConfig,
    dataset_names: Sequence[str],
    references: ArrayLike,
    *,
    energy_scale: ArrayLike = 1.0,
    forces_scale: ArrayLike = 1.0,
    seen: ArrayLike | None = None,
    energy_kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> Potential:
    """Build a potential with initial weights that depend on the configuration and the seed only.

    Args:
        config: Architecture.
        dataset_names: Names of the D datasets, in the order a graph's ``dataset`` counts.
        references: Reference energy of each element (D, 119), eV.
        energy_scale: Typical interaction energy, one or (D,), eV/atom.
        forces_scale: Typical force component, one or (D,), eV/angstrom.
        seen: Which elements the training data of each dataset has (D, 119); by default those whose reference is
            not zero.
        energy_kinds: What the energy of each dataset is ("total", "adsorption"), for the card.
        seed: Of the initial weights; the global random state is left as it was.

    Raises:
        ConfigError: There is no dataset, a name occurs twice, or an array does not fit their number.
    """
    names = [str(name) for name in dataset_names]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"a model needs datasets with different names, got {names}")
    energies = _fitting("references", references, (len(names), NUM_SPECIES))
    known = energies != 0 if seen is None else _fitting("seen", seen, energies.shape) != 0
    scales = {
        name: _fitting(name, np.broadcast_to(value, np.shape(value) or (len(names),)), (len(names),))
        for name, value in (("energy_scale", energy_scale), ("forces_scale", forces_scale))
    }
    for name, values in scales.items():
        if not (values > 0).all():
            raise ConfigError(f"{name} is {values.tolist()}, expected positive numbers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = Potential(config, names)
    potential.references.copy_(torch.from_numpy(energies))
    potential.seen.copy_(torch.from_numpy(known))
    potential.energy_scale.copy_(torch.from_numpy(scales["energy_scale"]))
    potential.forces_scale.copy_(torch.from_numpy(scales["forces_scale"]))
    if energy_kinds is not None:
        potential.energy_kinds = tuple(energy_kinds)
    return potential


def save_model(potential: Potential, directory: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write ``model.safetensors`` and ``model.json`` (the card, last) into a folder, and return the folder.

    Args:
        potential: The model.
        directory: Where; made if it is missing, an older model there is replaced.
        extra: JSON-able notes to keep in the card, such as training data and errors.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in potential.state_dict().items()}
    card = {
        "format_version": FORMAT_VERSION,
        "config": potential.config.model_dump(mode="json"),
        "dtype": str(next(potential.parameters()).dtype).removeprefix("torch."),
        "num_parameters": sum(value.numel() for value in potential.parameters()),
        "datasets": [
            {
                "name": name,
                "energy_kind": kind,
                "elements": [chemical_symbols[z] for z in np.flatnonzero(seen)],
            }
            for name, kind, seen in zip(
                potential.dataset_names, potential.energy_kinds, potential.seen.cpu().numpy(), strict=True
            )
        ],
        "units": {"energy": "eV", "length": "angstrom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"},
        "extra": dict(extra or {}),
    }
    save_file(tensors, directory / f"{WEIGHTS}.new")
    (directory / f"{CARD}.new").write_text(json.dumps(card, indent=1) + "\n")
    (directory / f"{WEIGHTS}.new").replace(directory / WEIGHTS)
    (directory / f"{CARD}.new").replace(directory / CARD)
    return directory


def load_card(directory: str | Path) -> dict[str, Any]:
    """Read the card of a saved model.

    Raises:
        MissingDataError: There is no model in the folder.
        CorruptDataError: The card is not readable, or of a newer format.
    """
    path = Path(directory) / CARD
    if not path.is_file():
        inside = path.parent / "model"
        advice = (
            f"did you mean {inside}?"
            if (inside / CARD).is_file()
            else "expected a folder that save_model wrote"
        )
        raise MissingDataError(f"{directory}: no {CARD} there; {advice}")
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        version = card["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{path}: not a model card: {error!r}") from error
    if version != FORMAT_VERSION:
        raise CorruptDataError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; update gfm-atoms"
        )
    return card


def load_model(directory: str | Path, device: torch.device | str = "cpu") -> Potential:
    """Load a potential in evaluation mode, in the dtype it was saved with.

    Raises:
        MissingDataError: A file is missing.
        CorruptDataError: The tensors are not those the card asks for.
        ConfigError: The card's configuration is not known to this program.
        ResourceError: The device is not there.
    """
    directory = Path(directory)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(f"device {str(device)!r} is asked for, but torch sees no GPU here; use 'cpu'")
    card = load_card(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise MissingDataError(f"{path}: there is a card but no weights beside it")
    config = parse_config(ModelConfig, card["config"], str(directory / CARD))
    with torch.random.fork_rng(devices=[]):
        potential = Potential(config, [entry["name"] for entry in card["datasets"]])
    potential.energy_kinds = tuple(entry["energy_kind"] for entry in card["datasets"])
    potential.to(getattr(torch, card["dtype"]))
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own class, which is no public name
        raise CorruptDataError(f"{path}: not readable as safetensors: {error}") from error
    expected = potential.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        raise CorruptDataError(f"{path} does not fit its card: {'; '.join(sorted(problems))}")
    potential.load_state_dict(tensors)
    return potential.to(device).eval()


def _fitting(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an array of the shape that the number of datasets asks for."""
    array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        raise ConfigError(f"{name} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} has entries that are not finite")
    return array
