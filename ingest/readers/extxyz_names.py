"""Keys, columns and units that an extended XYZ file may use, and how its headers spell the units."""

from typing import Literal

from gfm.data.units import BOHR, GPA, HARTREE, KBAR, KCAL_PER_MOL

__all__ = [
    "ENERGY", "ENERGY_KEYS", "FORCES", "FORCES_KEYS", "LENGTH", "NUMBERS_KEYS", "PRESSURE", "SPELLINGS",
    "EnergyUnit", "LengthUnit", "PressureUnit",
]  # fmt: skip

ENERGY_KEYS = ("energy", "Energy", "REF_energy", "dft_energy", "DFT_energy")
FORCES_KEYS = ("forces", "force", "Forces", "REF_forces", "dft_forces", "DFT_forces", "dft_force")
NUMBERS_KEYS = ("species", "Z", "numbers", "atomic_numbers")
ENERGY = {"eV": 1.0, "meV": 1e-3, "hartree": HARTREE, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KCAL_PER_MOL / 4.184}
LENGTH = {"angstrom": 1.0, "bohr": BOHR}
PRESSURE = {"eV/angstrom^3": 1.0, "GPa": GPA, "kbar": KBAR, "hartree/bohr^3": HARTREE / BOHR**3}
FORCES = {f"{energy}/{length}": ENERGY[energy] / LENGTH[length] for energy in ENERGY for length in LENGTH}
# How headers that name their units spell them.
SPELLINGS = {
    "ev": "eV", "mev": "meV", "hartree": "hartree", "ha": "hartree", "kcal/mol": "kcal/mol", "kj/mol": "kJ/mol",
    "ev/a": "eV/angstrom", "ev/ang": "eV/angstrom", "ev/angstrom": "eV/angstrom", "ev/å": "eV/angstrom",
    "ha/bohr": "hartree/bohr", "hartree/bohr": "hartree/bohr", "ha/a": "hartree/angstrom",
    "kcal/mol/a": "kcal/mol/angstrom", "kcal/mol/angstrom": "kcal/mol/angstrom",
    "ev/a^3": "eV/angstrom^3", "ev/angstrom^3": "eV/angstrom^3", "gpa": "GPa", "kbar": "kbar",
}  # fmt: skip

EnergyUnit = Literal["eV", "meV", "hartree", "kcal/mol", "kJ/mol"]
LengthUnit = Literal["angstrom", "bohr"]
PressureUnit = Literal["eV/angstrom^3", "GPa", "kbar", "hartree/bohr^3"]
