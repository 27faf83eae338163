"""A recipe is valid, or the user gets one line that names the key, the place and the remedy."""

import re
from pathlib import Path

import pytest

from configs.checkout import CHECKOUT
from configs.compare import result_differences, result_sha256
from configs.effect import check_keep_best, without_effect
from configs.errors import RecipeError
from configs.load import dump_recipe, load_recipe
from configs.reference import reference, schema

RECIPE = """\
run: {name: tiny, steps: 10}
model: {kind: gpt, layers: 2, heads: 4, width: 64, context: 32}
data:
  kind: text
  train: {shards: "a-{0..3}.tar"}
  val: {shards: b.tar}
batch:
  global: 64
  micro: 8
optimizer: {kind: adamw, lr: 3e-4}
schedule: {kind: cosine}
"""

LAUGHS = "\n".join(["l0: &l0 [x, x]", *(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 40))])


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_mistyped_key_is_answered_with_its_line_and_the_key_that_was_meant(recipe_path: Path) -> None:
    recipe_path.write_text(RECIPE.replace("  micro: 8", "  mikro: 8"))
    message = error_of(recipe_path)
    assert "batch.mikro is unknown" in message
    assert "tiny.yaml:9" in message
    assert "did you mean micro?" in message
    assert "batch.micro is missing" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "optimizer.lrr is unknown (override 'optimizer.lrr=1'); did you mean lr?"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast' (override 'optimizer.lr=fast'): expected number"),
        ("model.kind=gpd", "did you mean gpt?"),
        ("model.heads=3", "model.heads is 3, which does not divide model.width 64"),
        ("model.kv_heads=3", "model.kv_heads is 3, which does not divide model.heads 4"),
        ("batch.micro=7", "batch.global is 64, not a multiple of batch.micro 7"),
        ("batch.micro=128", "batch.micro is 128, larger than batch.global 64"),
        ("batch.micro=8.5", "batch.micro is 8.5"),
        ("precision=fp61", "expected 'fp32', 'bf16' or 'fp16'; did you mean fp16?"),
        ("zero.stage=4", "zero.stage is 4"),
        ("zero={stage: 0, offload_optimizer: cpu}", "zero.offload_optimizer needs zero.stage 1, 2 or 3"),
        ("zero.offload_parameters=cpu", "zero.offload_parameters needs zero.stage 3, found 1"),
        ("model.layers=0", "model.layers is 0"),
        ("model=null", "model"),
        ("model.kind=resnet", "model.layers is unknown"),
        ("schedule.warmup_steps=11", "schedule.warmup_steps is 11, more than run.steps 10"),
        ("schedule.min_lr=1.0", "schedule.min_lr is 1.0, above optimizer.lr 0.0003"),
        ("run.name=../x", "run.name is '../x'"),
        ("run.seed=9223372036854775808", "run.seed is 9223372036854775808"),
        ("batch={global: 16777213, micro: 8}", "choose batch.micro from 1, 16777213"),
        ("nonsense", "override 'nonsense' is not section.key=value"),
        ("run.seed.deep=1", "run.seed is"),
        (f"run.steps={10**30}", f"run.steps is {10**30}"),
        (f"run.steps={'9' * 5000}", "is no integer, or too large"),
        (f"checkpoint.every_steps={10**30}", "expected less than 9223372036854775808"),
        (f"batch.global={10**12}", "expected less than or equal to 16777216"),
        (f"model.width={10**12}", "expected less than or equal to 16777216"),
        (f"model.layers={10**9}", "expected less than or equal to 10000"),
        ("workers.count=1..99999999999999999999", "give at most 1048576"),
        *((f"workers.cpus={cpus}", f"workers.cpus is {cpus} (override") for cpus in ("0", "-1", "0.001", "-0.5")),
        ("workers.cpus=.nan", "workers.cpus is '.nan'"),
        ("batch={global: 8, micro: 4, micro: 2}", "micro is given twice"),
        (f"run={'[' * 5000}{']' * 5000}", "sections lie too deep in each other"),
        ("run.seed=!!int x", "'x' is no int"),
    ],
)
def test_a_wrong_value_is_named_with_the_remedy(recipe_path: Path, override: str, expected: str) -> None:
    message = error_of(recipe_path, override)
    assert expected in message
    assert "Traceback" not in message


def test_sections_must_agree(recipe_path: Path) -> None:
    assert "data.val is not given" in error_of(recipe_path, "data.val=null", "validation.every_steps=5")
    assert "stage 0 trains wrongly" in error_of(recipe_path, "precision=fp16", "zero.stage=0")
    for scale, told in (("{min_scale: 1.5}", "is 1.5: give a whole"), ("{initial_power: 4, min_scale: 32}", "is 32: ")):
        assert f"loss_scale.min_scale {told}" in error_of(recipe_path, "precision=fp16", f"loss_scale={scale}")
    message = error_of(recipe_path, "data={kind: image, train: {shards: a.tar}}")
    assert "model.kind gpt trains on text or tokens" in message


def test_only_what_is_wrong_with_the_alternative_that_was_meant_is_told(recipe_path: Path) -> None:
    lines = error_of(recipe_path, "data.train.shards=[{nme: web, shards: a.tar}]").splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "data.train.shards.0.name is missing",
        "data.train.shards.0.weight is missing",
        "data.train.shards.0.nme is unknown",
    ]
    assert "did you mean name? known: name, shards, weight" in lines[2]
    assert "data.train.shards is 3 (" in (told := error_of(recipe_path, "data.train.shards=3"))
    assert "expected string or list" in told


def test_keys_without_effect_are_told(recipe_path: Path) -> None:
    assert without_effect(load_recipe(recipe_path, ["data.val=null"])) == []
    unused = [
        "loss_scale.hysteresis=1",
        "schedule={kind: constant, min_lr: 1e-5, decay_steps: 5, period_steps: 4}",
        "data.val.shards=v.tar",
    ]
    told = without_effect(load_recipe(recipe_path, [*unused, "model.positions=learned", "model.rope_base=5e5"]))
    assert [line.partition(" is not used")[0] for line in told] == [
        *(
            "data.val",
            "loss_scale",
            "schedule.min_lr",
            "schedule.decay_steps",
            "schedule.period_steps",
            "model.rope_base",
        )
    ]


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (
            ["checkpoint.keep_best.metric=val_accuracy"],
            "which a gpt does not have: choose from val_loss, val_perplexity",
        ),
        (["checkpoint.keep_best.metric=val_los"], "choose from val_loss, val_perplexity"),
        (["checkpoint.keep_best.mode=max"], "keeps the worst val_loss: remove it, or set min"),
        (["checkpoint={every_steps: 7, keep_best: {}}"], "meet only every 14 steps: make one a multiple of the other"),
        (["checkpoint={every_steps: 5, keep_best: {}}", "validation.every_steps=7"], "meet only every 35 steps"),
        (["checkpoint={every_steps: 4, keep_best: {mode: min}}"], None),
        (["checkpoint={every_steps: 2, keep_best: {}}", "validation.every_steps=4"], None),
        (["checkpoint={every_steps: 99, keep_best: {metric: val_perplexity}}"], None),
    ],
)
def test_a_rule_that_keeps_no_best_checkpoint_or_the_worst_is_refused(
    recipe_path: Path, overrides: list[str], refused: str | None
) -> None:
    recipe = load_recipe(recipe_path, ["data.val.shards=v.tar", "validation.every_steps=2", *overrides])
    if refused is None:
        check_keep_best(recipe)
    else:
        with pytest.raises(RecipeError, match=re.escape(refused)):
            check_keep_best(recipe)


def test_samples_at_steps_without_a_validation_are_refused(recipe_path: Path) -> None:
    told = error_of(recipe_path, "validation={every_steps: 4, sample_every_steps: 6}")
    assert "validation.sample_every_steps is 6, not a multiple of validation.every_steps 4" in told


def test_every_mistake_is_told_at_once(recipe_path: Path) -> None:
    lines = error_of(recipe_path, "optimizer.lrr=1", "model.layers=0", "run.steps=x").splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty or not a mapping"),
        ("run: [", "is not valid YAML"),
        ("- a\n- b\n", "is empty or not a mapping"),
        (RECIPE + "batch: {global: 8, micro: 8}\n", "batch is given twice"),
        (RECIPE + "? [a]\n: 1\n", "a key must be a plain word"),
        ("run: &run {name: *run}", "one holds itself"),
        (f"run: {'[' * 10_000}{']' * 10_000}", "sections lie too deep in each other"),
        (LAUGHS, "holds more than 100,000 values, its aliases written out"),
        ("run: !!timestamp 2001-99-99", "could not determine a constructor"),
        ("run: !!bool maybe", "'maybe' is no bool"),
        ("run: {name: a, name: b}", "bad.yaml:1 and 1): remove one"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = error_of(path)
    assert expected in message
    assert "bad.yaml" in message


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    assert "absent.yaml cannot be read" in error_of(tmp_path / "absent.yaml")
    for name, content in {"binary.yaml": b"\xff\xfe\x00", "utf-16.yaml": RECIPE.encode("utf-16")}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name} cannot be read: it is not UTF-8 text" in error_of(tmp_path / name)
    assert "cannot be read: Is a directory" in error_of(tmp_path)
    (tmp_path / "nul.yaml").write_bytes(b"run: {name: 'a\0b'}")
    assert len(error_of(tmp_path / "nul.yaml").splitlines()) == 1


def test_cpus_may_be_shared_and_whole_ones_stay_integers(recipe_path: Path) -> None:
    cpus = {text: load_recipe(recipe_path, [f"workers.cpus={text}"]).workers for text in ("0.5", "1", "1.0", "2.5")}
    assert [repr(workers.cpus) for workers in cpus.values()] == ["0.5", "1", "1", "2.5"]
    assert [workers.threads for workers in cpus.values()] == [1, 1, 1, 2]
    assert "cpus: 1\n" in dump_recipe(load_recipe(recipe_path, ["workers.cpus=1.0"]))
    shared, whole = (load_recipe(recipe_path, [f"workers.cpus={text}"]) for text in ("0.5", "1"))
    assert result_differences(shared, whole) == []


def test_scalars_have_their_yaml_1_2_types(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, ["optimizer.lr=1e-3", "run.name=on", "data.part=no"])
    assert recipe.optimizer.lr == 1e-3
    assert recipe.run.name == "on"


def test_a_resolved_recipe_loads_to_itself(recipe_path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe


def test_micro_batches_do_not_depend_on_the_number_of_workers(recipe_path: Path) -> None:
    batch = load_recipe(recipe_path).batch
    assert batch.micro_batches == 8
    assert [batch.accumulation(workers) for workers in (1, 2, 3, 8, 16)] == [8, 4, 3, 1, 1]


def test_only_keys_that_change_the_result_stand_in_the_way_of_a_resume(recipe_path: Path) -> None:
    old = load_recipe(recipe_path)
    free = load_recipe(recipe_path, ["workers.count=4", "zero.stage=3", "checkpoint.every_steps=1", "run.dir=/x"])
    assert result_differences(old, free) == []
    assert result_sha256(old) == result_sha256(free)
    changed = load_recipe(recipe_path, ["optimizer.lr=1e-3", "run.steps=20"])
    assert result_differences(old, changed) == ["run.steps: 10 -> 20", "optimizer.lr: 0.0003 -> 0.001"]
    assert result_sha256(old) != result_sha256(changed)


def test_a_run_at_constant_rate_may_be_prolonged(recipe_path: Path) -> None:
    old = load_recipe(recipe_path, ["schedule.kind=constant"])
    assert result_differences(old, load_recipe(recipe_path, ["schedule.kind=constant", "run.steps=20"])) == []


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_shipped_recipe_is_valid(path: Path) -> None:
    load_recipe(path)


def test_the_reference_in_docs_is_up_to_date() -> None:
    assert (CHECKOUT / "docs" / "recipes.md").read_text() == reference()
    assert (CHECKOUT / "docs" / "recipe.schema.json").read_text() == schema()
