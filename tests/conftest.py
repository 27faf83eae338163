"""Settings for all tests."""

from hypothesis import settings

# How long an example takes says more about the machine's other load than about the code.
settings.register_profile("stoker", deadline=None, derandomize=True)
settings.load_profile("stoker")
