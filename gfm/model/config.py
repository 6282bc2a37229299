"""What a model is made of, as a typed configuration. Importing it loads no torch."""

from typing import Literal

import pydantic

from gfm.runtime.config import Config
from gfm.runtime.registry import Registry

__all__ = ["LAYERS", "ModelConfig"]

LAYERS = Registry("layer", {"egnn": "gfm.model.egnn:EGNN", "painn": "gfm.model.painn:PaiNN"})


class ModelConfig(Config):
    """Architecture of a potential.

    Attributes:
        layer: Message-passing layer, a name of `LAYERS`.
        hidden: Features per atom.
        num_layers: Message-passing layers.
        cutoff: Largest distance of an edge, angstrom.
        max_neighbors: Cap of `gfm.data.neighbors.neighbor_edges`; null for none. A cap makes the energy jump
            where the nearest neighbours change places, so it is a choice for speed only.
        radial_basis: Functions of the distance that messages are linear in.
        num_radial: How many of them.
        average_neighbors: Sums over neighbours are divided by its square root.
        heads: One set of output layers for all datasets, or one for each.
        forces: Predicted by an equivariant head of their own, or minus the gradient of the energy.
        head_hidden: Hidden features of the output layers; null for ``hidden``.
    """

    layer: str = "painn"
    hidden: int = pydantic.Field(64, ge=1)
    num_layers: int = pydantic.Field(3, ge=1)
    cutoff: float = pydantic.Field(5.0, gt=0)
    max_neighbors: int | None = pydantic.Field(None, ge=1)
    radial_basis: Literal["bessel", "gaussian"] = "bessel"
    num_radial: int = pydantic.Field(8, ge=1)
    average_neighbors: float = pydantic.Field(30.0, gt=0)
    heads: Literal["shared", "per-dataset"] = "per-dataset"
    forces: Literal["direct", "gradient"] = "direct"
    head_hidden: int | None = pydantic.Field(None, ge=1)

    @pydantic.field_validator("layer")
    @classmethod
    def _known_layer(cls, name: str) -> str:
        known = LAYERS.names()
        if name not in known:
            LAYERS.get(name)  # raises, naming what is known
        return name
