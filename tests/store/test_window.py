"""The window store under mpiexec: what the dataset gives, on one node, over the network, and in trouble."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi

MPIEXEC = Path(sys.executable).with_name("mpiexec")
SCRIPT = Path(__file__).with_name("window_ranks.py")


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Run a case of the script on some ranks; return exit code, what ranks reported, and stderr."""

    def start(case, dataset, ranks, **environment):
        reports = tmp_path_factory.mktemp("reports")
        done = subprocess.run(
            [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "mpi4py", SCRIPT, case, dataset.path, reports],
            env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        found = [json.loads(path.read_text()) for path in sorted(reports.iterdir())]
        return done.returncode, found, done.stderr

    return start


@pytest.fixture
def dataset(tmp_path, make_dataset, three_shards):
    return make_dataset(tmp_path, "adios", three_shards)


NETWORK = {"MPIR_CVAR_NOLOCAL": "1"}


@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
def test_ranks_of_a_node_read_each_others_memory(launch, dataset, ranks):
    code, reports, errors = launch("read", dataset, ranks)
    assert code == 0, errors
    assert [report["rank"] for report in reports] == list(range(ranks))
    for report in reports:
        assert report["stats"]["node"] > 0
        assert report["stats"]["local"] > 0
        assert report["stats"]["remote"] == report["stats"]["gets"] == 0
        assert report["stats"]["records"] == report["records"]
        assert not report["progress"]
    # Each rank holds its own share and no more.
    assert sum(report["own"] for report in reports) == reports[0]["total"]
    assert max(report["own"] for report in reports) < reports[0]["total"] / ranks + 2000


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_of_several_nodes_fetch(launch, dataset, ranks):
    code, reports, errors = launch("read", dataset, ranks, **NETWORK)
    assert code == 0, errors
    assert len(reports) == ranks
    for report in reports:
        assert report["stats"]["node"] == 0
        assert report["stats"]["remote"] > 0
        assert 0 < report["stats"]["gets"] <= report["stats"]["remote"]
        assert report["progress"]


@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_nodes_of_several_ranks_read_near_and_fetch_far(launch, dataset, ranks):
    """Even ranks on one node, odd ranks on another; of three ranks, one has its node to itself."""
    code, reports, errors = launch("read", dataset, ranks, MPIR_CVAR_ODD_EVEN_CLIQUES="1")
    assert code == 0, errors
    for report in reports:
        alone = ranks == 3 and report["rank"] == 1
        assert (report["stats"]["node"] > 0) is not alone
        assert report["stats"]["remote"] > 0


def test_records_that_follow_each_other_are_fetched_together_and_large_gets_divided(launch, dataset):
    code, reports, errors = launch("runs", dataset, 2, **NETWORK)
    assert code == 0, errors
    for report in reports:
        assert report["whole"] == 1
        assert report["divided"] == -(-report["other"] // 1000)


def test_more_ranks_than_rows(launch, tmp_path, make_dataset, structures):
    code, reports, errors = launch("read", make_dataset(tmp_path, "adios", [structures(2)]), 3)
    assert code == 0, errors
    assert len(reports) == 3


def test_memory_that_is_not_shown_is_asked_for_by_get(launch, dataset):
    """As with Open MPI, whose windows do not answer Shared_query."""
    code, reports, errors = launch("hidden", dataset, 2)
    assert code == 0, errors
    assert all(report["stats"]["remote"] > 0 and report["stats"]["node"] == 0 for report in reports)


def test_damage_met_by_one_rank_is_raised_on_all(launch, dataset):
    path = dataset.path / "shards" / "000002.bp" / "data.0"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, reports, errors = launch("damage", dataset, 3)
    assert code == 0, errors
    assert [report["kind"] for report in reports] == ["CorruptDataError"] * 3
    assert all("data.0: crc32c" in report["text"] for report in reports)
    # Rank 0 read nothing of the damaged shard.
    assert reports[0]["text"].startswith("rank 1: ")


def test_a_node_with_too_little_memory_is_named_on_all_ranks(launch, dataset):
    code, reports, errors = launch("memory", dataset, 2)
    assert code == 0, errors
    for report in reports:
        assert report["kind"] == "ResourceError"
        assert "of memory, 2.0 KiB are available" in report["text"]
        assert "such nodes would do, or store 'disk'" in report["text"]


def test_too_small_a_shared_memory_is_named(launch, dataset):
    code, reports, errors = launch("shm", dataset, 2)
    assert code == 0, errors
    assert all("of /dev/shm, 5.0 KiB are available" in report["text"] for report in reports)


def test_ranks_must_ask_for_the_same_rows(launch, dataset):
    code, reports, errors = launch("disagree", dataset, 2)
    assert code == 0, errors
    assert all("must be the same" in report["text"] for report in reports)


def test_rows_that_do_not_exist_are_refused_on_all_ranks(launch, dataset):
    code, reports, errors = launch("beyond", dataset, 2)
    assert code == 0, errors
    assert all("rows are 0..32, asked for 3..33" in report["text"] for report in reports)


def test_a_busy_owner_does_not_keep_others_waiting(launch, dataset):
    """Rank 0 sleeps outside MPI until the others, who need its records, have said that they have them."""
    code, reports, errors = launch("busy", dataset, 2, **NETWORK)
    assert code == 0, errors
    assert reports[0]["served"]
