"""`stoker train --address` on a Ray cluster that somebody else runs, whose nodes come and die."""

import json
from pathlib import Path

import pytest

from configs.recipe import Recipe
from tests.ray_cluster import RayCluster
from tests.trainer.commands import attempts, start, steps_done, train, wait_for
from tests.trainer.runs import GPT, events, history, recipe_of, run_folder_of, write_text_shards

pytestmark = pytest.mark.slow


def samples(recipe: Recipe) -> dict[int, set[str]]:
    """The keys of each step, of the last attempt that trained it."""
    found: dict[int, tuple[int, set[str]]] = {}
    for path in sorted((run_folder_of(recipe) / "audit").iterdir()):
        attempt = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            record = json.loads(line)
            last, keys = found.get(record["step"], (0, set()))
            keys = keys | set(record["keys"]) if last == attempt else set(record["keys"])
            found[record["step"]] = (attempt, keys)
    return {step: keys for step, (_, keys) in found.items()}


def test_workers_follow_the_nodes_and_every_batch_stays_the_same_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text_shards(tmp_path, documents=400)
    setting = {
        "checkpoint": {"every_steps": 20},
        "validation": None,
        "monitor": {"every_steps": 1, "audit_samples": True},
    }
    runs = {"dir": str(tmp_path / "runs"), "steps": 400}
    count = {"count": "2..3", "max_failures": 1}
    elastic = recipe_of(tmp_path, GPT, "elastic", run={**runs, "name": "elastic"}, workers=count, **setting)
    fixed = recipe_of(tmp_path, GPT, "fixed", run={**runs, "name": "fixed"}, **setting)
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
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert grown % 20 == 0  # at a checkpoint, so that no step was done twice
    for name in cluster.environment:
        monkeypatch.delenv(name)
    code, output = train(fixed, tmp_path)
    assert code == 0, output
    assert samples(elastic) == samples(fixed)
    pairs = list(zip(history(elastic), history(fixed), strict=True))
    assert all(a["step"] == b["step"] for a, b in pairs)
    # Sums over three workers are rounded otherwise than over two; later that grows.
    assert [a["loss"] for a, _ in pairs[:150]] == pytest.approx([b["loss"] for _, b in pairs[:150]], rel=1e-4)
    assert not [e for e in events(elastic, "fault") if e["kind"] == "HangError"]


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
