"""The job script: pure, byte-stable, safe whatever the names are."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.slurm.sbatch_script import JobScript, render
from configs.errors import RunFolderError
from configs.sections.slurm_section import Slurm
from trainer.commands.submit import split_arguments

HOSTILE = """a b'c"d$(touch pwned)`touch pwned`;#%j&*?!~{x}"""


def job(slurm: Slurm, run_folder: str = "/shared/runs/tiny", working_folder: str = "/shared/work") -> JobScript:
    return JobScript(
        name="tiny",
        slurm=slurm,
        cpus_per_node=8,
        gpus_per_node=4,
        run_folder=Path(run_folder),
        submission=1,
        working_folder=Path(working_folder),
        checkout=Path("/shared/stoker"),
        python=Path("/shared/stoker/.venv/bin/python"),
    )


SCRIPT = """\
#!/bin/bash
# Rendered by `stoker submit`. Slurm reads the lines that start with #SBATCH.
#SBATCH --job-name=tiny
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --output=/shared/runs/tiny/slurm/job-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@120
#SBATCH --export=AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY,AWS_SESSION_TOKEN,AWS_PROFILE,AWS_REGION,AWS_ENDPOINT_URL,\
AWS_ENDPOINT_URL_S3,AWS_ALLOW_HTTP,GOOGLE_APPLICATION_CREDENTIALS,AZURE_STORAGE_ACCOUNT_NAME,AZURE_STORAGE_ACCOUNT_KEY,\
AZURE_STORAGE_SAS_TOKEN,HTTP_PROXY,HTTPS_PROXY,NO_PROXY,http_proxy,https_proxy,no_proxy,WANDB_MODE
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --exclusive
# A warning must neither end this shell nor get lost: blocked from here on, it waits for the supervisor to ask for it.
if [ -z "${STOKER_SHIELDED-}" ] && /shared/stoker/.venv/bin/python -ISc '' 2> /dev/null; then
  STOKER_SHIELDED=1 exec /shared/stoker/.venv/bin/python -ISc 'import os, signal as s, sys
s.pthread_sigmask(s.SIG_BLOCK, (s.SIGTERM, s.SIGINT, s.SIGUSR2)); os.execv(sys.argv[1], sys.argv[1:])' /bin/bash "$0"
fi
unset STOKER_SHIELDED
# Steps inherit this environment, not sbatch's choice of variables.
export SLURM_EXPORT_ENV=ALL
setup_failed() {
  echo "stoker: error: '$1' of slurm.setup failed on $(hostname); add '|| true' to what may" >&2
  exit 2
}
trap 'setup_failed "$BASH_COMMAND"' ERR
module load cuda
trap - ERR
set -u
run_folder=/shared/runs/tiny
cd -- /shared/work || exit 2
# In place of the shell, so that Slurm's warning reaches the supervisor at once.
PYTHONPATH=/shared/stoker exec /shared/stoker/.venv/bin/python -m cluster.slurm_job.batch_main "$run_folder" 1
"""


def test_equal_jobs_give_these_very_bytes() -> None:
    section = Slurm(
        nodes=4,
        time="12:00:00",
        partition="gpu",
        setup=["module load cuda"],
        environment=["WANDB_MODE"],
        sbatch=["--exclusive"],
    )
    assert render(job(section)) == SCRIPT


def test_values_of_the_environment_do_not_reach_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter3")
    script = render(job(Slurm(environment=["HF_TOKEN"])))
    assert "hunter" not in script
    assert "HF_TOKEN" in script


def _printed(script: str, folder: Path) -> list[str]:
    """What the shell makes of the script's paths: its last command replaced by one that prints them."""
    lines = script.replace("cd -- ", "printf '%s\\n' ").splitlines()
    lines[-1] = """printf '%s\\n' "$run_folder" """
    task = {"SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(
        ["bash"], input="\n".join(lines), cwd=folder, env=task, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_hostile_names_are_words_and_nothing_more(tmp_path: Path) -> None:
    plain = job(Slurm(), f"/runs/{HOSTILE}/tiny", f"/work/{HOSTILE}")
    assert _printed(render(plain), tmp_path) == [f"/work/{HOSTILE}", f"/runs/{HOSTILE}/tiny"]
    array = job(Slurm(array="0-3"), f"/runs/{HOSTILE}/tiny-{{task}}", f"/work/{HOSTILE}")
    assert _printed(render(array), tmp_path) == [f"/work/{HOSTILE}", f"/runs/{HOSTILE}/tiny-3"]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="THE JOB SCRIPT IS NOT CHECKED: no shellcheck here")
@pytest.mark.parametrize("array", [None, "0-3"])
def test_shellcheck_finds_nothing(array: str | None) -> None:
    for name in ("plain", HOSTILE):
        script = render(job(Slurm(array=array, setup=["module load cuda"]), f"/runs/{name}-{{task}}", f"/work/{name}"))
        done = subprocess.run(
            ["shellcheck", "--exclude=SC2016", "-"], input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def script_of(tmp_path: Path, setup: list[str]) -> Path:
    """A job script whose supervisor is a process that tells which signals it has been sent and not seen."""
    checkout = tmp_path / "checkout"
    (checkout / "cluster" / "slurm_job").mkdir(parents=True)
    (checkout / "cluster" / "slurm_job" / "batch_main.py").write_text(
        "import signal\nprint(*sorted(number.name for number in signal.sigpending()))\n"
    )
    made = replace(
        job(Slurm(setup=setup), str(tmp_path), str(tmp_path)), checkout=checkout, python=Path(sys.executable)
    )
    path = tmp_path / "job.sbatch"
    path.write_text(render(made))
    return path


def test_a_warning_while_the_setup_lines_run_waits_for_the_supervisor(tmp_path: Path) -> None:
    setup = [f"touch {tmp_path / 'begun'}", "sleep 1", ': "$unset"']  # as scripts of conda do, which know no `set -u`
    with subprocess.Popen(["bash", script_of(tmp_path, setup)], stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR2)
        output, _ = process.communicate(timeout=400)
    assert (process.returncode, output) == (0, "SIGUSR2\n")


def test_a_setup_line_that_fails_is_named_and_a_test_that_is_not_met_is_no_failure(tmp_path: Path) -> None:
    fine = ["if [ -d /absent ]; then", "false", "else", "true", "fi", "[ -f absent ] && source absent", "false || true"]
    script = script_of(tmp_path, [*fine, "module load 'cuda'"])
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: 'module load 'cuda'' of slurm.setup failed on" in done.stderr
    script.write_text(script.read_text().replace("module load 'cuda'", ""))
    assert subprocess.run(["bash", script], capture_output=True, check=True).stdout == b"\n"


def test_a_path_that_cannot_stand_in_a_job_script_is_refused() -> None:
    with pytest.raises(RunFolderError, match="control character or a backslash"):
        render(job(Slurm(), "/runs/two\nlines"))


def test_flags_after_the_dashes_are_sbatchs_own_unless_stoker_sets_them() -> None:
    assert split_arguments(["run.steps=3", "--exclusive", "--comment=a b"]) == (
        ["run.steps=3"],
        ["--exclusive", "--comment=a b"],
    )
    with pytest.raises(ValueError, match=r"slurm\.sbatch has --nodes, which Stoker sets itself: use slurm\.nodes"):
        Slurm(sbatch=["--nodes=3"])
