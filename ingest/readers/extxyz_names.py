"""Keys and columns under which extended XYZ files keep energies, forces and atomic numbers."""

__all__ = ["ENERGY_KEYS", "FORCES_KEYS", "NUMBERS_KEYS"]

ENERGY_KEYS = ("energy", "Energy", "REF_energy", "dft_energy", "DFT_energy")
FORCES_KEYS = ("forces", "force", "Forces", "REF_forces", "dft_forces", "DFT_forces", "dft_force")
NUMBERS_KEYS = ("species", "Z", "numbers", "atomic_numbers")
