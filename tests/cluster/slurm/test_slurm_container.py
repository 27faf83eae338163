"""The words that put a job's agents and driver into a container: pure."""

from pathlib import Path

import pytest

from cluster.slurm.job_environment import SlurmJob
from cluster.slurm.slurm_container import check_container, container_of
from cluster.slurm_job.host_agent import AgentPlan
from cluster.slurm_job.steps import agents_command, driver_command
from configs.checkout import CHECKOUT
from configs.errors import ClusterError, RecipeError
from configs.local_folders import local_folders
from configs.recipe import Recipe
from tests.support.training.runs import GPT, recipe_of

WORK = Path("/shared/work")
JOB = SlurmJob("7", 0, ("n1", "n2"), cpus=4, gpus=0, memory_bytes=None)
PLAN = AgentPlan(
    *("n1", "10.0.0.1:4000", "/shared/token", "/shared/runs/a", 4, 0, None, None, "7", ["n1", "n2"], 5, None, True)
)


def _recipe(folder: Path, image: str, **slurm: object) -> Recipe:
    return recipe_of(
        folder, GPT, "run", run={"name": "a", "dir": "/shared/runs", "steps": 10}, slurm={"container": image, **slurm}
    )


def test_the_folders_of_a_recipe_are_those_of_its_files_outermost_first(tmp_path: Path) -> None:
    shards = {"shards": ["/d/b/{000..009}/x-*.tar", "/d/b/one.tar", "s3://bucket/x.tar", "../near/y.tar"]}
    recipe = recipe_of(
        tmp_path,
        GPT,
        "run",
        run={"name": "a", "dir": "runs", "steps": 10},
        data={"kind": "text", "train": shards},
        validation=None,
    )
    folders = local_folders(recipe, WORK)
    assert {Path("/d/b"), Path("/shared/near"), WORK} <= set(folders)
    assert not [one for one in folders for other in folders if one != other and one.is_relative_to(other)]


def test_pyxis_makes_the_container_by_flags_of_each_step(tmp_path: Path) -> None:
    container = container_of(_recipe(tmp_path, "nvcr.io#a/b:1", container_mounts=["/data:/d:ro", "/x"]), WORK, CHECKOUT)
    assert container is not None
    agents = agents_command(JOB, "/venv/python", PLAN, container)
    where = agents.index("--container-image=nvcr.io#a/b:1")
    (mounts,) = [word for word in agents if word.startswith("--container-mounts=")]
    assert mounts.startswith("--container-mounts=/tmp:/tmp,") and mounts.endswith(",/data:/d:ro,/x:/x")
    for folder in (CHECKOUT, WORK, "/shared/runs"):
        assert f"{folder}:{folder}" in mounts.partition("=")[2].split(",")
    assert "--container-workdir=/shared/work" in agents[where:]
    assert agents[-5:-1] == [f"PYTHONPATH={CHECKOUT}", "python3", "-m", "cluster.slurm_job.host_agent"]
    driver = driver_command(JOB, "/venv/python", Path("/r.yaml"), PLAN, container)
    assert driver[0] == "srun"
    assert "--nodelist=n1" in driver
    assert "/venv/python" not in driver


def test_apptainer_makes_the_container_by_a_command_of_its_own(tmp_path: Path) -> None:
    container = container_of(_recipe(tmp_path, "images/a.sif"), WORK, CHECKOUT)
    assert container is not None
    driver = driver_command(JOB, "/venv/python", Path("/r.yaml"), PLAN, container)
    assert driver[:3] == ["apptainer", "exec", "--bind"]
    assert driver[4:6] == ["/shared/work/images/a.sif", "env"]
    other = container_of(_recipe(tmp_path, "docker://a/b", container_runtime="singularity"), WORK, CHECKOUT)
    assert other is not None
    assert "singularity" in agents_command(JOB, "/venv/python", PLAN, other)


def test_what_cannot_work_is_told_before_a_job_is_queued(tmp_path: Path) -> None:
    pyxis = container_of(_recipe(tmp_path, "a/b"), WORK, CHECKOUT)
    assert pyxis is not None
    assert check_container(pyxis, has_pyxis=True, has_command=False) == []
    with pytest.raises(ClusterError, match="srun has no --container-image"):
        check_container(pyxis, has_pyxis=False, has_command=False)
    missing = container_of(_recipe(tmp_path, "a.sif"), WORK, CHECKOUT)
    assert missing is not None
    with pytest.raises(RecipeError, match=r"there is no /shared/work/a\.sif: correct the path"):
        check_container(missing, has_pyxis=False, has_command=True)
    remote = container_of(_recipe(tmp_path, "docker://a/b"), WORK, CHECKOUT)
    assert remote is not None
    (warning,) = check_container(remote, has_pyxis=False, has_command=False)
    assert "there is no apptainer here" in warning
    with pytest.raises(RecipeError, match="/a,b cannot be mounted"):
        container_of(_recipe(tmp_path, "a.sif"), Path("/a,b"), CHECKOUT)
