"""docs/cloud.md: its recipe section, and what of its commands needs no cloud, as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.checkout import CHECKOUT

TEXT = (CHECKOUT / "docs" / "cloud.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line.partition("#")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines()]


def documented(start: str) -> str:
    """The one command that begins so."""
    (found,) = (line for line in COMMANDS if line.startswith(start))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipe = yaml.safe_load((CHECKOUT / "configs" / "gpt_tiny.yaml").read_text())
    section = yaml.safe_load(next(block for kind, block in BLOCKS if kind == "yaml"))
    recipe["data"]["train"]["shards"] = "s3://corpus/train-{000..007}.tar"
    recipe["data"]["val"]["shards"] = "s3://corpus/val-000.tar"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | section))
    return tmp_path


def rendered(folder: Path, command: str) -> str:
    words = shlex.split(re.split(r"[|>]", command)[0])
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *words[1:]],
        cwd=folder,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rendered_job_is_the_one_whose_logs_the_documentation_follows(folder: Path) -> None:
    config, job = yaml.safe_load_all(rendered(folder, documented("stoker render kuberay")))
    assert (config["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    assert documented("kubectl logs").endswith(f"job-name={job['metadata']['name']}")


def test_the_rendered_cluster_has_the_recipe_where_the_documented_job_looks_for_it(folder: Path) -> None:
    cluster = yaml.safe_load(rendered(folder, documented("stoker render ray-cluster")))
    (path,) = re.findall(r"stoker train (\S+)", documented("RAY_AUTH_MODE=token ray job submit"))
    assert cluster["head_setup_commands"][0].endswith(f"> {path}")
    assert "dir: /shared/runs" in cluster["head_setup_commands"][0]
