"""One rig for all tests of a session; loudly skipped where there is no Slurm."""

from collections.abc import Iterator

import pytest

from tests.support.slurm.rig import CONTROLLER, Rig, missing_tools


@pytest.fixture(scope="session")
def whole_rig() -> Iterator[Rig]:
    missing = missing_tools()
    if missing:
        pytest.skip(f"SLURM IS NOT TESTED: missing {', '.join(missing)}")
    with Rig(hosts=3) as rig:
        yield rig


@pytest.fixture
def rig(whole_rig: Rig) -> Iterator[Rig]:
    """All hosts idle before the test; afterwards nothing of a job runs on them, and none is drained."""
    whole_rig.wait_idle()
    yield whole_rig
    try:
        whole_rig.wait_idle()
    finally:
        whole_rig.inside(CONTROLLER, "scancel", "--me")  # a test that failed must not fail the next one
    assert {host: whole_rig.processes(host) for host in whole_rig.hosts} == {host: [] for host in whole_rig.hosts}
