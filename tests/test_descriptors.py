"""The limit of open files: raised for the service, restored for its servers, and shared with applications."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmdeploy.gateway.limits import Limits
from llmdeploy.service import descriptors

SERVICE = """
import resource
from llmdeploy.service import descriptors
from llmdeploy.service.server_process import Child

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
assert descriptors.raise_limit() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
lines = []
child = Child(("sh", "-c", "ulimit -Sn; env | grep LLMDEPLOY_OPEN_FILES"), {}, 1, lines.append)
child.exit.result()
assert lines == ["200"], lines
"""


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_servers_get_the_limit_that_the_service_was_started_with() -> None:
    subprocess.run([sys.executable, "-c", SERVICE], check=True)


@pytest.mark.parametrize(
    ("files", "clients"), [(32, 8), (64, 12), (1024, 396), (4096, 1625), (10_032, 4000), (2**30, 4000)]
)
def test_connections_of_applications_and_their_servers_fit_the_limit(files: int, clients: int) -> None:
    assert descriptors.most_clients(files, Limits().clients) == clients
    assert files < 52 or 2 * clients <= files * 0.8
