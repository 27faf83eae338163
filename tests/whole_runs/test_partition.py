"""A host whose cable is taken out and put back: the run goes on without it, and it never writes again."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster.run.ledger import read_json_lines
from tests.support.hosts import CAN_MAKE_HOSTS, Hosts
from tests.support.training.commands import attempts, start, steps_done, wait_for
from tests.support.training.runs import (
    GPT,
    digests,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_text_shards,
)

STEPS = 300  # so many that the cut comes in time


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="stoker-test-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="hosts are network namespaces, which need root and iproute2")
def test_a_host_that_is_cut_off_is_replaced_and_writes_nothing_after_it_is_back(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short_path
    write_text_shards(folder, documents=400)
    runs = {"dir": str(folder / "runs"), "steps": STEPS}
    setting = {"checkpoint": {"every_steps": 5, "keep_last": 2}, "validation": None}
    cut, calm = (
        recipe_of(folder, GPT, name, run={**runs, "name": name}, workers={"count": 2, "max_failures": 0}, **setting)
        for name in ("cut", "calm")
    )
    with Hosts(folder, 3) as hosts:
        for name, value in hosts.environment.items():
            monkeypatch.setenv(name, value)
        process = start(cut, folder, "--address", hosts.address, place=partial(hosts.inside, 0))
        wait_for(lambda: steps_done(cut) >= 20, process)
        first = attempts(cut)[0]
        lost = int(first["host"].removeprefix("host"))  # of rank 0, which writes checkpoints, metrics and ledger
        assert set(first["pids"]) & set(hosts.processes(lost))
        hosts.cut(lost)
        wait_for(lambda: len(attempts(cut)) == 2, process)
        hosts.heal(lost)
        stale = [psutil.Process(pid) for pid in first["pids"] if psutil.pid_exists(pid)]
        wait_for(lambda: not any(p.is_running() for p in stale), process)
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output
    for name in hosts.environment:
        monkeypatch.delenv(name)
    train_in_processes(folder / "store", 2, [(calm, None)])
    assert [a["host"] for a in attempts(cut)][1] != f"host{lost}"
    again = attempts(cut)[1]["time"]
    later = [e for e in read_json_lines(run_folder_of(cut) / "ledger.jsonl") if e["time"] > again]
    told_by_the_driver = [e for e in later if e["event"] == "fault" and e["kind"] == "HostLost"]
    assert [e for e in later if e.get("attempt") == 1 and e not in told_by_the_driver] == []
    assert history(cut) == history(calm)
    assert digests(cut, STEPS) == digests(calm, STEPS)
    assert not list((run_folder_of(cut) / "checkpoints").glob(".[sr]*"))
