"""Training from shards behind a server that fails all the time is training from the same shards on disk."""

from pathlib import Path

import pytest

from configs.recipe import Recipe
from tests.support.data.hostile_server import HostileServer, busy, flipped_bit, reset, short_body, wrong_length
from tests.support.training.runs import GPT, digests, events, history, recipe_of, train_in_processes, write_text_shards

FAULTS = (reset, short_body, busy, wrong_length, flipped_bit)


def _remote(recipe: Recipe, server: HostileServer, folder: Path) -> Recipe:
    shards = {"train": [server.url(f"train-{i:06d}.tar") for i in range(3)], "val": server.url("val-000000.tar")}
    data = recipe.data.model_dump() | {name: {"shards": value} for name, value in shards.items()}
    data["remote"] = {"cache_dir": str(folder / "cache"), "timeout_s": 2.0, "tries": 20}
    fields = recipe.model_dump(by_alias=True)
    return Recipe.model_validate(fields | {"data": data, "run": {**fields["run"], "name": "remote"}})


def test_training_over_a_failing_network_is_bit_for_bit_training_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_text_shards(tmp_path)
    local = recipe_of(tmp_path, GPT, "local")
    objects = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    server = HostileServer(objects, FAULTS, share=0.5, seed=3)
    try:
        remote = _remote(local, server, tmp_path)
        train_in_processes(tmp_path / "store", 2, [(local, None), (remote, None)])
    finally:
        server.close()
    assert len(server.suffered) == len(FAULTS)
    assert history(remote) == history(local)
    assert digests(remote, 10) == digests(local, 10)
    assert not events(remote, "sample_skipped")


def test_a_server_that_is_gone_stops_the_run_and_is_named_even_where_samples_may_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_text_shards(tmp_path)
    objects = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    server = HostileServer(objects)
    recipe = _remote(recipe_of(tmp_path, GPT, "local"), server, tmp_path)
    server.close()
    data = recipe.data.model_copy(
        update={"on_error": "skip", "remote": recipe.data.remote.model_copy(update={"tries": 2})}
    )
    with pytest.raises(AssertionError, match=r"could not be read in 2 tries"):
        train_in_processes(tmp_path / "store", 1, [(recipe.model_copy(update={"data": data}), None)])
    assert not events(recipe, "sample_skipped")
