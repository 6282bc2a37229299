"""Unit constants. Inside the system all is eV, angstrom, eV/angstrom, eV/angstrom^3 (tension positive).

Source: CODATA 2018 (https://physics.nist.gov/cuu/Constants/), doi:10.1103/RevModPhys.93.025010.
"""

__all__ = ["BOHR", "GPA", "HARTREE", "KBAR", "KCAL_PER_MOL"]

HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # angstrom
KCAL_PER_MOL = 4184.0 / 6.02214076e23 / 1.602176634e-19  # eV (thermochemical calorie)
GPA = 1e9 * 1e-30 / 1.602176634e-19  # eV/angstrom^3
KBAR = 0.1 * GPA  # eV/angstrom^3
