"""The slurm: section and the profiles below it."""

from pathlib import Path

import pytest

from configs.errors import RecipeError
from configs.slurm_profiles import profiles_path, with_profile
from tests.support.training.runs import GPT, recipe_of

PROFILES = """\
default: {partition: gpu, account: physics, setup: [module load cuda]}
long: {partition: long, time: 2-00, warning_s: 600}
wrong: {partitoin: gpu}
"""


def _profiles(folder: Path) -> Path:
    path = folder / "slurm.yaml"
    path.write_text(PROFILES)
    return path


def test_options_go_before_the_recipe_and_the_recipe_before_the_profile(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, GPT, "run", slurm={"account": "maths", "nodes": 2})
    slurm = with_profile(recipe, {"nodes": 4}, _profiles(tmp_path)).slurm
    assert slurm is not None
    assert (slurm.partition, slurm.account, slurm.nodes, slurm.setup) == ("gpu", "maths", 4, ["module load cuda"])
    slurm = with_profile(recipe, {"profile": "long"}, _profiles(tmp_path)).slurm
    assert slurm is not None
    assert (slurm.partition, slurm.time, slurm.warning_s, slurm.setup) == ("long", "2-00", 600, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "lung"}, r"slurm\.profile 'lung' is not in .*slurm\.yaml; known: default, long, wrong"),
        ({"profile": "wrong"}, r"wrong\.partitoin is unknown \(.*slurm\.yaml:3\); known: profile, nodes"),
        ({"time": "soon"}, r"slurm\.time is 'soon': expected a value as 1-12, 12:00:00 or 90"),
        ({"sbatch": ["--mem=3G"]}, r"slurm\.sbatch has --mem, which Stoker sets itself: use slurm\.memory"),
        ({"environment": ["TOKEN=secret"]}, r"slurm\.environment has 'TOKEN=secret': expected names"),
        ({"account": "two\nlines"}, r"slurm\.account is .*: a control character cannot stand in a job script"),
    ],
)
def test_mistakes_are_told_in_a_line(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        with_profile(recipe_of(tmp_path, GPT, "run"), options, _profiles(tmp_path))


def test_the_profiles_file_is_the_users_own() -> None:
    assert profiles_path({"HOME": "/home/a"}) == Path("/home/a/.config/stoker/slurm.yaml")
    assert profiles_path({"HOME": "/home/a", "XDG_CONFIG_HOME": "/c"}) == Path("/c/stoker/slurm.yaml")
    assert profiles_path({"HOME": "/home/a", "STOKER_SLURM_PROFILES": "/p.yaml"}) == Path("/p.yaml")
