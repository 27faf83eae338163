"""`stoker train --address` on a Ray cluster that somebody else runs, whose nodes come, die and are drained."""

import os
from pathlib import Path

import pytest

from tests.ray_cluster import RayCluster
from tests.trainer.commands import attempts, start, steps_done, train, wait_for
from tests.trainer.runs import GPT, events, history, recipe_of, run_folder_of, write_text_shards

pytestmark = pytest.mark.slow


def losses(recipe: object) -> list[float]:
    return [float(line["loss"]) for line in history(recipe)]  # type: ignore[arg-type]


def test_workers_follow_the_nodes_and_every_batch_stays_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(tmp_path, documents=400)
    setting = {"checkpoint": {"every_steps": 20}, "validation": None, "monitor": {"every_steps": 1}}
    runs = {"dir": str(tmp_path / "runs"), "steps": 1200}
    count = {"count": "2..3", "max_failures": 1}
    elastic = recipe_of(tmp_path, GPT, "elastic", run={**runs, "name": "elastic"}, workers=count, **setting)
    fixed = recipe_of(tmp_path, GPT, "fixed", run={**runs, "name": "fixed", "steps": 1200}, **setting)
    with RayCluster(tmp_path) as cluster:
        cluster.order("add")
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        process = start(elastic, tmp_path, "--address", cluster.address)
        wait_for(lambda: steps_done(elastic) >= 30, process)
        third = cluster.order("add")
        wait_for(lambda: [a["workers"] for a in attempts(elastic)] == [2, 3], process)
        grown = events(elastic, "resized")[0]["step"]
        wait_for(lambda: steps_done(elastic) >= grown + 30, process)
        cluster.order(f"kill {third}")
        wait_for(lambda: [a["workers"] for a in attempts(elastic)] == [2, 3, 2], process)
        shrunk = steps_done(elastic)
        fourth = cluster.order("add")
        wait_for(lambda: [a["workers"] for a in attempts(elastic)] == [2, 3, 2, 3], process)
        wait_for(lambda: steps_done(elastic) >= shrunk + 60, process)
        cluster.order(f"drain {fourth}")
        wait_for(lambda: [a["workers"] for a in attempts(elastic)] == [2, 3, 2, 3, 2], process)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert grown % 20 == 0  # at a checkpoint, so that no step was done twice
    assert len(events(elastic, "preempted")) == 1
    for name in cluster.environment:
        monkeypatch.delenv(name)
    code, output = train(fixed, tmp_path)
    assert code == 0, output
    assert losses(elastic) == pytest.approx(losses(fixed), rel=1e-4)
    assert not [e for e in events(elastic, "fault") if e["kind"] == "HangError"]
    assert os.path.exists(run_folder_of(elastic) / "checkpoints" / "step-00001200")  # noqa: PTH110


def test_a_wrong_token_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_shards(tmp_path)
    recipe = recipe_of(tmp_path, GPT, "refused")
    with RayCluster(tmp_path) as cluster:
        (tmp_path / "wrong").write_text("0" * 64)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "wrong"))
        code, output = train(recipe, tmp_path, "--address", cluster.address)
    assert code == 2, output
    assert f"no Ray cluster could be joined at {cluster.address}" in output
    assert "Traceback" not in output
