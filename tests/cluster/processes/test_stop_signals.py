import signal

import pytest

from cluster.processes.stop_signals import HANDLED, StopSignals


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_sets_a_flag_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(handled) for handled in HANDLED]
    with StopSignals() as signals:
        signal.raise_signal(number)
        assert signals.requested == number.name
    assert [signal.getsignal(handled) for handled in HANDLED] == before


def test_the_first_signal_is_remembered_and_a_second_interrupt_raises() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signals.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
