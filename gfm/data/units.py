"""Units. Inside the system all is eV, angstrom, eV/angstrom, eV/angstrom^3 (tension positive).

The tables say what one of a source's unit is in those, by the names that readers' options know.

Source: CODATA 2018 (https://physics.nist.gov/cuu/Constants/), doi:10.1103/RevModPhys.93.025010.
"""

__all__ = [
    "BOHR",
    "ENERGY_UNITS",
    "FORCES_UNITS",
    "GPA",
    "HARTREE",
    "KBAR",
    "KCAL_PER_MOL",
    "LENGTH_UNITS",
    "PRESSURE_UNITS",
    "UNIT_SPELLINGS",
]

HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # angstrom
KCAL_PER_MOL = 4184.0 / 6.02214076e23 / 1.602176634e-19  # eV (thermochemical calorie)
GPA = 1e9 * 1e-30 / 1.602176634e-19  # eV/angstrom^3
KBAR = 0.1 * GPA  # eV/angstrom^3

ENERGY_UNITS: dict[str, float] = {
    "eV": 1.0, "meV": 1e-3, "hartree": HARTREE, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KCAL_PER_MOL / 4.184,
}  # fmt: skip
LENGTH_UNITS: dict[str, float] = {"angstrom": 1.0, "bohr": BOHR}
PRESSURE_UNITS: dict[str, float] = {
    "eV/angstrom^3": 1.0, "GPa": GPA, "kbar": KBAR, "hartree/bohr^3": HARTREE / BOHR**3,
}  # fmt: skip
FORCES_UNITS: dict[str, float] = {
    f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length]
    for energy in ENERGY_UNITS
    for length in LENGTH_UNITS
}
# How files that name their units spell them, in lower case.
UNIT_SPELLINGS: dict[str, str] = {
    "ev": "eV", "mev": "meV", "hartree": "hartree", "ha": "hartree", "kcal/mol": "kcal/mol", "kj/mol": "kJ/mol",
    "a": "angstrom", "ang": "angstrom", "angstrom": "angstrom", "å": "angstrom",
    "bohr": "bohr", "a0": "bohr",
    "ev/a": "eV/angstrom", "ev/ang": "eV/angstrom", "ev/angstrom": "eV/angstrom", "ev/å": "eV/angstrom",
    "ha/bohr": "hartree/bohr", "hartree/bohr": "hartree/bohr",
    "ha/a": "hartree/angstrom", "ha/ang": "hartree/angstrom",
    "kcal/mol/a": "kcal/mol/angstrom", "kcal/mol/ang": "kcal/mol/angstrom",
    "kcal/mol/angstrom": "kcal/mol/angstrom",
    "ev/a^3": "eV/angstrom^3", "ev/angstrom^3": "eV/angstrom^3", "gpa": "GPa", "kbar": "kbar",
}  # fmt: skip
