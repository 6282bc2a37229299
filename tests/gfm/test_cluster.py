"""The Dask client: loopback only, workers that compute on one thread, nothing left behind."""

import os

import pytest

from gfm.errors import ConfigError
from gfm.runtime.cluster import ClusterConfig, open_client
from gfm.runtime.config import Config, parse_config


class _Job(Config):
    cluster: ClusterConfig = ClusterConfig()


def test_a_kind_alone_is_a_configuration() -> None:
    assert parse_config(_Job, {"cluster": "local"}, "job").cluster == ClusterConfig()
    assert parse_config(_Job, {"cluster": {"kind": "local", "workers": 3}}, "job").cluster.workers == 3


@pytest.mark.parametrize(
    ("cluster", "message"),
    [("slurmy", "kind"), ({"worker": 2}, "Did you mean 'workers'"), ({"workers": 0}, "workers")],
)
def test_what_is_no_cluster_is_refused(cluster: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(_Job, {"cluster": cluster}, "job")


def test_threads_of_this_process_compute_and_the_dashboard_is_on_loopback() -> None:
    with open_client(ClusterConfig(processes=False, workers=2)) as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
    assert client.status == "closed"


@pytest.mark.slow
def test_worker_processes_have_their_environment_and_the_client_keeps_its_own() -> None:
    def environment() -> dict[str, str | None]:  # nested: sent by value, workers cannot import tests
        import os
        import sys

        names = ("PYTHONSAFEPATH", "OMP_NUM_THREADS")
        return {name: os.environ.get(name) for name in names} | {"safe": str(sys.flags.safe_path)}

    before = dict(os.environ)
    with open_client(ClusterConfig(workers=1, dashboard=None)) as client:
        seen = client.submit(environment).result()
        address = next(iter(client.scheduler_info()["workers"]))
        pid = client.submit(os.getpid).result()
    assert seen == {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "safe": "True"}
    assert address.startswith("tcp://127.0.0.1:")
    assert pid != os.getpid()
    assert dict(os.environ) == before
