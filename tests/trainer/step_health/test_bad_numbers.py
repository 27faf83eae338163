"""Bad numbers in real runs: found, told, left out for good; and the run ends as if they had never been there."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.run.ledger import Ledger, read_json_lines
from configs.load import dump_recipe
from configs.recipe import Recipe
from tests.support.training.bad_batches import (
    CAUSES,
    TOKENS,
    bad_recipe,
    keys_of,
    leave_out_from_the_start,
    write_bad_batches,
)
from tests.support.training.commands import STOKER, attempts, left_behind, train
from tests.support.training.runs import (
    GPT,
    RESNET,
    digests,
    events,
    history,
    recipe_of,
    run_folder_of,
    train_in_processes,
    write_image_shards,
    write_text_shards,
)
from tests.support.training.tiny_huggingface import checkpoint_of
from trainer import cli
from trainer.history.verdict import verdict

SPIKE = {"window_steps": 5, "z": 10.0}
slow = pytest.mark.slow


def _policy(name: str, **more: Any) -> dict[str, Any]:
    return {"bad_numbers": {"policy": name, "spike": SPIKE, **more}}


def _causes(recipe: Recipe) -> dict[int, str]:
    return {event["step"]: event["cause"] for event in events(recipe, "bad_number") if event["left_out"]}


def _assert_same(recipes: list[Recipe]) -> None:
    for recipe in recipes[1:]:
        assert history(recipe) == history(recipes[0])
        assert digests(recipe, 10) == digests(recipes[0], 10)


def _assert_no_figure_counts_what_was_left_out(recipe: Recipe) -> None:
    lines = read_json_lines(run_folder_of(recipe) / "metrics.jsonl")
    for line in lines:  # every step is one interval
        rates = [line[name] for name in ("samples_per_s", "tokens_per_s", "mfu")]
        assert (rates == [0.0] * 3) if line.get("left_out") else all(rate > 0 for rate in rates)
    rows, tokens = recipe.batch.global_, TOKENS - 1
    assert lines[-1]["tokens"] == (10 - len(CAUSES)) * rows * tokens


def _audited(recipe: Recipe) -> dict[bool, dict[int, list[str]]]:
    """Keys by step as the last attempt recorded them, of both ranks in order; under True those that were left out."""
    found: dict[bool, dict[int, list[str]]] = {True: {}, False: {}}
    steps: dict[int, tuple[bool, list[str]]] = {}
    for attempt in range(1, len(attempts(recipe)) + 1):
        files = [run_folder_of(recipe) / "audit" / f"attempt-{attempt}-rank-{rank}.jsonl" for rank in (0, 1)]
        for first, second in zip(*map(read_json_lines, files), strict=True):
            assert [line.get("left_out", False) for line in (first, second)] == [first.get("left_out", False)] * 2
            steps[first["step"]] = (first.get("left_out", False), first["keys"] + second["keys"])
    for step, (left_out, keys) in sorted(steps.items()):
        found[left_out][step] = keys
    return found


@pytest.mark.parametrize(
    ("precision", "zero"),
    [
        ("fp32", {"stage": 0}),
        pytest.param("fp32", {"stage": 3}, marks=slow),
        *(pytest.param("bf16", {"stage": stage}, marks=slow) for stage in (0, 1)),
        pytest.param("fp32", {"stage": 2, "offload_optimizer": "cpu"}, marks=slow),
    ],
)
def test_a_run_that_skips_or_goes_back_ends_in_every_bit_as_if_it_had_known(
    tmp_path: Path, precision: str, zero: dict[str, Any]
) -> None:
    write_bad_batches(tmp_path)
    known, skipped, back = (
        bad_recipe(tmp_path, name, zero=zero, precision=precision, **_policy(policy))
        for name, policy in (("known", "stop"), ("skipped", "skip_batch"), ("back", "rollback"))
    )
    leave_out_from_the_start(known, *CAUSES)
    train_in_processes(tmp_path / "store", 2, [(known, None), (skipped, None), (back, None)])
    _assert_same([known, skipped, back])
    assert [line["step"] for line in history(known) if line.get("left_out")] == list(CAUSES)
    assert [line.get("left_out_steps", 0) for line in history(known)] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    _assert_no_figure_counts_what_was_left_out(skipped)
    assert (len(attempts(skipped)), len(attempts(back))) == (1, 4)
    bad = {step: keys_of(known, step) for step in CAUSES}
    for recipe in (skipped, back):
        assert _causes(recipe) == CAUSES
        assert [event["keys"] for event in events(recipe, "bad_number")] == list(bad.values())
    for recipe in (known, skipped, back):
        audited = _audited(recipe)
        assert audited[True] == bad
        assert [*audited[False]] == [1, 2, 3, 5, 7, 9, 10]


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 2), *(pytest.param("fp16", s, marks=slow) for s in (2, 3))])
def test_a_left_out_step_moves_no_statistic_no_average_and_no_loss_scale(
    tmp_path: Path, precision: str, stage: int
) -> None:
    """A net with batch normalisation and averaged weights; so strict a limit finds spikes in any training."""
    write_image_shards(tmp_path)
    strict = {"spike": {"window_steps": 2, "z": 1e-3}}
    sections: dict[str, Any] = {"precision": precision, "zero": {"stage": stage}, "ema": {"decay": 0.9}}
    if precision == "fp16":
        sections["loss_scale"] = {"initial_power": 8, "window_steps": 2}
    known, skipped = (
        recipe_of(tmp_path, RESNET, name, checkpoint={"every_steps": 100}, **sections, **_policy(policy, **strict))
        for name, policy in (("known", "stop"), ("skipped", "skip_batch"))
    )
    train_in_processes(tmp_path / "a", 2, [(skipped, None)])
    leave_out_from_the_start(known, *_causes(skipped))
    train_in_processes(tmp_path / "b", 2, [(known, None)])
    assert 0 < len(_causes(skipped)) < 8
    _assert_same([known, skipped])


def test_a_resume_on_other_workers_has_the_left_out_steps_and_judges_by_the_same_losses(tmp_path: Path) -> None:
    write_bad_batches(tmp_path)
    whole, cut = (bad_recipe(tmp_path, name, **_policy("skip_batch")) for name in ("whole", "cut"))
    train_in_processes(tmp_path / "two", 2, [(whole, None), (cut, 5)])
    train_in_processes(tmp_path / "three", 3, [(cut, 7)])
    before = checkpoint_of(cut, 7)[1].numbers
    train_in_processes(tmp_path / "one", 1, [(cut, None)])
    assert before["left_out"] == [4, 6]
    assert before["losses"] == [line["loss"] for line in history(cut)[:7] if "loss" in line]
    assert checkpoint_of(cut, 10)[1].numbers["left_out"] == list(CAUSES)
    assert _causes(cut) == _causes(whole) == CAUSES  # the step after the resume is a spike
    one, other = ([line.get("loss", 0.0) for line in history(recipe)] for recipe in (whole, cut))
    assert other == pytest.approx(one, rel=1e-5)


def test_what_is_left_out_stays_so_when_older_checkpoints_are_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the recipe would now stop at it; and `stoker data order` tells of it."""
    write_bad_batches(tmp_path)
    whole, cut = (bad_recipe(tmp_path, name, **_policy("skip_batch")) for name in ("whole", "cut"))
    train_in_processes(tmp_path / "a", 2, [(whole, None), (cut, 9)])
    for step in (6, 9):
        shutil.rmtree(run_folder_of(cut) / "checkpoints" / f"step-{step:08d}")
    train_in_processes(tmp_path / "b", 2, [(bad_recipe(tmp_path, "cut", **_policy("stop")), None)])
    assert events(cut, "resumed")[-1]["step"] == 3
    assert len(events(cut, "bad_number")) == 3
    _assert_same([whole, cut])
    (tmp_path / "cut.yaml").write_text(dump_recipe(cut))
    told = f"left out of {run_folder_of(cut)}, never trained on: the loss 85."
    for step, first in (("8", told), ("7", "micro-batch 0: ")):
        monkeypatch.setattr("sys.argv", ["stoker", "data", "order", str(tmp_path / "cut.yaml"), "--step", step])
        with pytest.raises(SystemExit):
            cli.main()
        assert capsys.readouterr().out.startswith(first)


def test_more_bad_batches_than_allowed_end_the_run_with_the_first_cause(tmp_path: Path) -> None:
    write_bad_batches(tmp_path)
    recipe = bad_recipe(tmp_path, "bounded", **_policy("rollback", max_events=2))
    told = "more global batches are bad than bad_numbers.max_events 2; the first: the loss is nan at step 4; now the lo"
    for store in ("a", "b"):  # another invocation does not begin to count anew
        with pytest.raises(AssertionError, match="LossSpikeError"):
            train_in_processes(tmp_path / store, 2, [(recipe, None)])
        fault = events(recipe, "fault")[-1]
        assert fault["message"].startswith(told)
        assert (fault["step"], fault["final"]) == (8, True)
    assert list(_causes(recipe)) == [4, 6]
    assert max(line["step"] for line in history(recipe)) == 7


def test_with_stop_an_update_that_deepspeed_dropped_is_told_at_once(tmp_path: Path) -> None:
    """The step is neither logged nor saved, and the weights after it would look well."""
    write_bad_batches(tmp_path)
    seldom = {"monitor": {"every_steps": 100}, "checkpoint": {"every_steps": 100}, "zero": {"stage": 2}}
    recipe = bad_recipe(tmp_path, "stops", bad_numbers={}, **seldom)
    leave_out_from_the_start(recipe, 4)
    with pytest.raises(AssertionError, match="NonFiniteError"):
        train_in_processes(tmp_path / "store", 2, [(recipe, None)])
    ended = verdict(Ledger(run_folder_of(recipe) / "ledger.jsonl").events())
    assert ended.cause.startswith("the gradient norm is inf at step 6: its samples are in ")
    assert "step 6, phase optimizer step" in ended.where
    (found,) = [event for event in events(recipe, "bad_number") if not event["left_out"]]
    assert found["keys"] == keys_of(recipe, 6)


@slow
def test_an_overflow_of_fp16_is_no_bad_number(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    scale = {"initial_power": 30, "hysteresis": 1}
    sections: dict[str, Any] = {"precision": "fp16", "loss_scale": scale, "zero": {"stage": 2}, "validation": None}
    recipes = [recipe_of(tmp_path, GPT, policy, **sections, **_policy(policy)) for policy in ("skip_batch", "rollback")]
    train_in_processes(tmp_path / "store", 2, [(recipe, None) for recipe in recipes])
    _assert_same(recipes)
    for recipe in recipes:
        assert events(recipe, "step_skipped")
        assert not events(recipe, "bad_number")


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=slow)])
def test_an_overflow_of_fp16_at_the_least_loss_scale_is_a_bad_number(tmp_path: Path, stage: int) -> None:
    write_text_shards(tmp_path)
    scale = {"initial_power": 30, "min_scale": 2**30, "hysteresis": 2}
    sections: dict[str, Any] = {"precision": "fp16", "loss_scale": scale, "zero": {"stage": stage}, "validation": None}
    stops = recipe_of(tmp_path, GPT, "stops", monitor={"every_steps": 100}, **sections)
    with pytest.raises(AssertionError, match="NonFiniteError"):
        train_in_processes(tmp_path / "a", 2, [(stops, None)])
    told = events(stops, "fault")[-1]
    assert told["message"].startswith("the gradient norm is inf at step 2 (fp16, loss scale 1.07374e+09): its samples")
    assert told["final"]
    skips = recipe_of(tmp_path, GPT, "skips", **sections, **_policy("skip_batch", max_events=3))
    with pytest.raises(AssertionError, match="more global batches are bad"):
        train_in_processes(tmp_path / "b", 2, [(skips, None)])
    assert _causes(skips) == dict.fromkeys((2, 3, 4), "gradient")


def test_so_many_overflows_in_a_row_are_a_bad_number_wherever_the_run_was_cut(tmp_path: Path) -> None:
    """The scale is far from its least value: at step 4 the row is as long as is allowed, and no later step ends it."""
    write_text_shards(tmp_path)
    scale = {"initial_power": 30, "hysteresis": 1, "max_skipped_steps": 4}
    sections: dict[str, Any] = {"precision": "fp16", "loss_scale": scale, "zero": {"stage": 2}, "validation": None}
    stops = recipe_of(tmp_path, GPT, "stops", monitor={"every_steps": 100}, **sections)
    with pytest.raises(AssertionError, match="NonFiniteError"):
        train_in_processes(tmp_path / "a", 2, [(stops, None)])
    (told,) = {event["message"].partition(": its samples")[0] for event in events(stops, "fault")}
    assert told == (
        "the gradients have overflowed fp16 4 times in a row (loss_scale.max_skipped_steps) at step 4 "
        "(fp16, loss scale 1.34218e+08)"
    )
    assert all(event["final"] for event in events(stops, "fault"))
    whole, cut = (
        recipe_of(tmp_path, GPT, name, **sections, **_policy("skip_batch", max_events=2)) for name in ("whole", "cut")
    )
    with pytest.raises(AssertionError, match="more global batches are bad"):
        train_in_processes(tmp_path / "b", 2, [(whole, None)])
    train_in_processes(tmp_path / "c", 2, [(cut, 2)])
    with pytest.raises(AssertionError, match="more global batches are bad"):
        train_in_processes(tmp_path / "d", 3, [(cut, None)])
    assert _causes(cut) == _causes(whole) == dict.fromkeys((4, 5), "overflows")


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=slow)])
def test_in_fp16_a_loss_that_is_no_number_is_left_out_and_moves_no_loss_scale(tmp_path: Path, stage: int) -> None:
    causes = {4: "loss", 8: "spike"}
    write_bad_batches(tmp_path, causes, fp16=True)
    sections: dict[str, Any] = {"precision": "fp16", "zero": {"stage": stage}, "loss_scale": {"initial_power": 4}}
    known, skipped, back = (
        bad_recipe(tmp_path, name, **sections, **_policy(policy))
        for name, policy in (("known", "stop"), ("skipped", "skip_batch"), ("back", "rollback"))
    )
    leave_out_from_the_start(known, *causes)
    train_in_processes(tmp_path / "store", 2, [(known, None), (skipped, None), (back, None)])
    _assert_same([known, skipped, back])
    assert _causes(skipped) == _causes(back) == causes
    assert {line["loss_scale"] for line in history(known) if "loss" in line} == {16.0}


@slow
def test_going_back_costs_no_failure_under_ray_and_survives_a_worker_killed_meanwhile(tmp_path: Path) -> None:
    write_bad_batches(tmp_path)
    known, back = (
        bad_recipe(tmp_path, name, workers={"count": 2, "max_failures": 1}, **_policy(policy))
        for name, policy in (("known", "stop"), ("back", "rollback"))
    )
    leave_out_from_the_start(known, *CAUSES)
    train_in_processes(tmp_path / "store", 2, [(known, None)])
    leave_out_from_the_start(back, 8)
    code, output = train(back, tmp_path, "--chaos", "kill:rank=1@step=4,phase=going back")
    assert code == 0, output
    assert "warning: the loss is nan at step 4: its global batch is left out (2 of at most 10), going back to" in output
    assert len(attempts(back)) == 3  # killed while going back, went back, finished
    assert "WorkerDied" in [event["kind"] for event in events(back, "fault")]
    assert [event["step"] for event in events(back, "rolled_back")] == [6]
    _assert_same([known, back])
    assert left_behind(tmp_path) == []
    told = json.loads(subprocess.check_output([STOKER, "status", run_folder_of(back), "--json"]))
    began, ended = events(back, "command")[0], events(back, "command_ended")[0]
    assert sum(told["seconds"].values()) == pytest.approx(ended["time"] - began["started"])
    assert told["seconds"]["lost"] > 0
    assert [restart["fault"] for restart in told["restarts"]] == [
        "WorkerDied on rank 1",
        "going back (the gradient norm is inf)",
    ]
