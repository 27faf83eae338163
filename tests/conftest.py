"""Settings for all tests."""

import signal

import pytest
from hypothesis import settings

# How long an example takes says more about the machine's other load than about the code.
settings.register_profile("stoker", deadline=None, derandomize=True)
settings.load_profile("stoker")

# A shell starts its background jobs deaf to Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
