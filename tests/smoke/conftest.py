"""Every test here is part of `make test-smoke`."""

import pytest

from tests.support.slurm.rig_fixtures import rig, whole_rig

__all__ = ["rig", "whole_rig"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/smoke/" in str(item.fspath):
            item.add_marker(pytest.mark.smoke)
