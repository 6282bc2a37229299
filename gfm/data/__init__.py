"""Structures and what can be said of them without a model: fields, units, neighbours, references, splits."""
