"""Joules: the best method there is, counters that wrap, and an estimate that says it is one."""

from pathlib import Path

import pytest

from gfm.runtime.power import WATTS_PER_CORE, EnergyMeter


def _zone(folder: Path, name: str, microjoules: int, size: int = 1_000_000_000) -> Path:
    zone = folder / name
    zone.mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text(f"{size}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone


def test_without_counters_the_method_is_an_estimate_of_cpu_seconds(tmp_path: Path) -> None:
    with EnergyMeter(powercap=tmp_path) as meter:
        assert meter.method == f"estimate: {WATTS_PER_CORE:g} W per core x CPU seconds"
        before = meter.joules
        total = sum(i * i for i in range(300_000))
        assert total > 0
        assert meter.joules > before
    after = meter.joules
    assert meter.seconds > 0
    assert sum(range(300_000)) > 0
    assert meter.joules == after, "a meter that was left does not count on"


def test_rapl_adds_packages_and_leaves_subzones_out(tmp_path: Path) -> None:
    first, second = _zone(tmp_path, "intel-rapl:0", 5_000_000), _zone(tmp_path, "intel-rapl:1", 0)
    core = _zone(tmp_path, "intel-rapl:0:0", 0)
    with EnergyMeter(powercap=tmp_path) as meter:
        assert meter.method == "rapl"
        (first / "energy_uj").write_text("7000000")
        (second / "energy_uj").write_text("500000")
        (core / "energy_uj").write_text("900000000")
        assert meter.joules == pytest.approx(2.5)


def test_rapl_counters_may_wrap_again_and_again(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "intel-rapl:0", 900, size=1000)
    with EnergyMeter(powercap=tmp_path) as meter:
        for value, expected in ((50, 150), (950, 1050), (10, 1110), (20, 1120)):
            (zone / "energy_uj").write_text(str(value))
            assert meter.joules == pytest.approx(expected / 1e6)


def test_ranks_that_share_a_node_share_its_joules(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "intel-rapl:0", 900_000, size=1_000_000)
    with EnergyMeter(powercap=tmp_path, share=0.25) as meter:
        (zone / "energy_uj").write_text("100000")
        assert meter.joules == pytest.approx(0.05)
        (zone / "energy_uj").write_text("300000")
        assert meter.joules == pytest.approx(0.1)
        assert "0.25" in meter.method


def test_a_second_use_starts_from_zero(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "intel-rapl:0", 0)
    meter = EnergyMeter(powercap=tmp_path)
    for value in (1_000_000, 3_000_000):
        with meter:
            (zone / "energy_uj").write_text(str(value))
    assert meter.joules == pytest.approx(2.0)
