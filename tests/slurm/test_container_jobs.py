"""Runs in containers, made by stand-ins for pyxis and apptainer that know no other flags than Stoker gives."""

import time

from tests.support.slurm.rig import CONTROLLER, Rig
from tests.support.slurm.submitted_run import SubmittedRun
from tests.support.training.runs import GPT

PYTHON = "/opt/stoker/python3"
_PYTHON = "^[^ ]*python[^ ]* -m "
AGENT, RAYLET, WORKER, DRIVER = (
    f"{_PYTHON}cluster.slurm_job.host_agent",
    "raylet/raylet",
    "^ray::",
    f"{_PYTHON}trainer train",
)
SUPERVISOR = f"{_PYTHON}cluster.slurm_job.batch_main"


def images_of(rig: Rig, host: str, pattern: str) -> set[str]:
    """Of the processes with the pattern in their command line: what image they are in, "" for none."""
    pids = rig.inside(host, "pgrep", "--full", pattern, check=False).stdout.split()
    texts = [rig.inside(host, "cat", f"/proc/{pid}/root/opt/stoker/image", check=False).stdout for pid in pids]
    return set(texts)


def test_a_run_in_pyxis_containers_outlives_its_first_host(rig: Rig) -> None:
    rig.make_image("stoker.sqsh")
    slurm = {"container_python": PYTHON}
    run = SubmittedRun(rig, "pyxis", steps=100_000, slurm=slurm)
    run.submit("--nodes", "2", "--container", "../stoker.sqsh")
    run.wait_training()
    for pattern in (AGENT, RAYLET, WORKER, DRIVER):
        assert images_of(rig, "n1", pattern) == {"stoker.sqsh"}, pattern
    assert images_of(rig, "n1", SUPERVISOR) == {""}
    run.wait_for(lambda: bool(run.events("checkpoint")), "a checkpoint")
    rig.power_off("n1")
    run.wait_training(starts=2)
    assert run.resumed_steps()[0] >= 20
    saved = run.events("checkpoint")[-1]["step"]
    run.stoker("cancel")
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
    assert run.events("checkpoint")[-1]["step"] > saved
    rig.power_on("n1")


def test_a_run_in_apptainer_containers_that_is_warned_amid_a_checkpoint_keeps_it_and_finishes(rig: Rig) -> None:
    image = rig.make_image("stoker.sif")
    slurm = {"container_python": PYTHON, "setup": [f"export PATH={rig.folder}/bin:$PATH"], "health_check": "full"}
    workers = {"count": 2, "hang_timeout_s": 600.0}  # one is stopped for a while
    model = {**GPT, "width": 512, "layers": 6}
    run = SubmittedRun(rig, "apptainer", steps=40, slurm=slurm, workers=workers, model=model)
    run.submit("--nodes", "2", "--container", str(image))
    run.wait_training()
    for pattern in (AGENT, RAYLET, WORKER):
        assert images_of(rig, "n2", pattern) == {"stoker.sif"}, pattern
    deadline = time.monotonic() + 1200  # bounds a hang
    while not any((run.folder / "checkpoints").glob(".staging-*")):
        assert time.monotonic() < deadline, "a checkpoint is being written"
        time.sleep(0.01)
    begun = run.events("attempt_started")[0]
    for signal_name in ("STOP", "CONT"):  # it is warned before the checkpoint is whole, however fast the disk is
        rig.inside(begun["hosts"][0], "kill", f"-{signal_name}", str(begun["pids"][0]))
        if signal_name == "STOP":
            rig.inside(CONTROLLER, "scancel", "--batch", "--signal=USR2", run.job)
            run.wait_for(lambda: bool(run.events("warned")), "the warning")
    ended = run.wait_over()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()
    (warned,), first = run.events("warned"), run.events("checkpoint")[0]
    assert warned["time"] < first["time"]  # it was being written, and not yet published
    assert len(run.events("job_started")) == 2
    assert run.resumed_steps() == [run.events("stopped")[0]["step"]]
    assert run.resumed_steps()[0] >= first["step"] == 20
    assert run.events("finished")
