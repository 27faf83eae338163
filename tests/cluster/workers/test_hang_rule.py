"""The judgement over beats: who hangs, and who only waits for it."""

from typing import Any

from cluster.workers.hang_rule import Beat, find_hang, observe


def told(shell: int, beats: int | None, progress: int = 7, **more: Any) -> dict[str, Any]:
    sign = {} if beats is None else {"beats": beats}
    facts = {
        "shell": shell,
        "progress": progress,
        "step": 40,
        "phase": "backward",
        "step_s": 0.1,
        "host": "n1",
        "pid": 9,
    }
    return {**facts, **sign, **more}


def watch(looks: dict[int, list[dict[str, Any]]]) -> dict[int, Beat]:
    """Beats after one look per second."""
    beats: dict[int, Beat] = {}
    for rank, tellings in looks.items():
        beat = None
        for second, telling in enumerate(tellings):
            beat = observe(beat, telling, float(second))
        assert beat is not None
        beats[rank] = beat
    return beats


def test_the_silent_rank_is_to_blame_and_not_the_one_that_waits_for_it() -> None:
    waits = [told(n, n) for n in range(10)]
    for silent in ([told(n, 0) for n in range(10)], [told(0, n) for n in range(10)]):  # the process, the shell
        hang = find_hang(watch({0: waits, 1: silent}), 9.0, hang_timeout_s=10.0)
        assert hang is not None
        assert hang.rank == 1
        assert hang.message == "rank 1 on n1 (pid 9) has not been heard of for 9.0 s at step 41 (backward)"


def test_shell_and_process_that_beat_in_turn_are_both_alive() -> None:
    in_turn = [told(n // 2 + n % 2, n // 2) for n in range(40)]
    assert (
        find_hang(watch({0: [{**t, "progress": n} for n, t in enumerate(in_turn)]}), 39.0, hang_timeout_s=10.0) is None
    )


def test_where_all_beat_the_one_that_has_come_least_far_is_to_blame() -> None:
    ahead = [told(n, n, progress=9) for n in range(12)]
    behind = [told(n, n, progress=8, phase="forward") for n in range(12)]
    hang = find_hang(watch({0: ahead, 1: behind}), 11.0, hang_timeout_s=10.0)
    assert hang is not None
    assert (hang.rank, "has made no progress" in hang.message) == (1, True)


def test_five_median_steps_are_waited_for_and_slow_phases_are_no_hang() -> None:
    slow = [told(n, n, step_s=10.0) for n in range(30)]
    assert find_hang(watch({0: slow}), 29.0, hang_timeout_s=10.0) is None
    for phase in ("reading data", "saving", "going back", "restoring the checkpoint"):
        waits = [told(n, n, phase=phase) for n in range(60)]
        assert find_hang(watch({0: waits}), 59.0, hang_timeout_s=10.0) is None


def test_a_process_that_has_not_begun_is_given_time_and_the_first_steps_too() -> None:
    starting = [told(n, None, progress=0, phase="starting", step_s=None) for n in range(60)]
    assert find_hang(watch({0: starting}), 59.0, hang_timeout_s=10.0) is None
    first = [told(n, n, step_s=None) for n in range(50)]
    assert find_hang(watch({0: first}), 49.0, hang_timeout_s=10.0) is None
    assert find_hang(watch({0: [told(n, n, step_s=None) for n in range(70)]}), 69.0, hang_timeout_s=10.0) is not None
