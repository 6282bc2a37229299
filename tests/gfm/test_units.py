"""Unit constants against ASE's, which come from the same CODATA table by another road."""

import pytest
from ase import units as ase_units

from gfm.data import units


def test_units_agree_with_ase() -> None:
    codata = ase_units.create_units("2018")
    assert units.HARTREE == pytest.approx(codata["Hartree"], rel=1e-10)
    assert units.BOHR == pytest.approx(codata["Bohr"], rel=1e-10)
    assert units.KCAL_PER_MOL == pytest.approx(codata["kcal"] / codata["mol"], rel=1e-10)
    assert units.GPA == pytest.approx(codata["GPa"], rel=1e-10)
    assert pytest.approx(10.0) == units.GPA / units.KBAR
