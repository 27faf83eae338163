"""Settings for all tests."""

import signal

from hypothesis import settings

# How long an example takes says more about the machine's other load than about the code.
settings.register_profile("stoker", deadline=None, derandomize=True)
settings.load_profile("stoker")

# A shell starts its background jobs deaf to Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
