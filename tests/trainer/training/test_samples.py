"""Texts that the model writes at a validation: as often and as long as the recipe says, with a beat at every token."""

from pathlib import Path

from configs.recipe import Recipe
from tests.support.processes import run_in_processes
from tests.support.training.runs import GPT, events, recipe_of, train_in_processes, write_text_shards

TOKENS = 7


class _Beats:
    """In the place of the line to the supervisor."""

    leave = None

    def __init__(self) -> None:
        self.phases: list[str] = []

    def report_position(self, phase: str, step: int | None = None) -> None:
        self.phases.append(phase)

    def report(self, **facts: object) -> None: ...


def _beats_of_a_sample(recipes: list[Recipe]) -> list[tuple[int, list[str]]]:
    from cluster.run.ledger import Ledger
    from cluster.run.run_folder import RunFolder
    from trainer.engine.deepspeed_engine import DeepSpeedEngine
    from trainer.rank.activity import Activity
    from trainer.rank.context import Context
    from trainer.rank.ranks import Ranks
    from trainer.tasks.build_task import build_task

    found = []
    for recipe in recipes:
        ranks, folder, beats = Ranks.connect(), RunFolder.of(recipe), _Beats()
        folder.make()
        context = Context(recipe, folder, Ledger(folder.ledger), ranks, 1, "", Activity(beats))
        engine = DeepSpeedEngine(build_task(recipe), context)
        text = engine.sample(TOKENS)
        assert text is not None
        found.append((len(text), beats.phases))
        engine.close()
    return found


def test_every_rank_beats_at_every_token_of_a_sample(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    recipes = [recipe_of(tmp_path, GPT, f"z{stage}", zero={"stage": stage}) for stage in (1, 3)]
    for rank in run_in_processes(_beats_of_a_sample, 2, tmp_path / "store", recipes):
        assert [beats for _, beats in rank] == [["sampling"] * TOKENS] * 2


def test_samples_come_as_often_and_as_long_as_the_recipe_says(tmp_path: Path) -> None:
    write_text_shards(tmp_path)
    validation = {"every_steps": 2, "sample_every_steps": 4, "sample_tokens": 3}
    some = recipe_of(tmp_path, GPT, "some", validation=validation)
    none = recipe_of(tmp_path, GPT, "none", validation={"every_steps": 5, "sample_tokens": 0})
    train_in_processes(tmp_path / "store", 2, [(some, None), (none, None)])
    sampled = {event["step"]: event["sample"] for event in events(some, "validated")}
    assert [step for step, text in sampled.items() if text is not None] == [4, 8, 10]
    assert all(len(text) <= 3 for text in sampled.values() if text is not None)
    assert [event["sample"] for event in events(none, "validated")] == [None, None]
