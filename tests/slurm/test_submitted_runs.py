"""Runs on a real Slurm, as a user submits them: `make test-slurm`."""

import re

from configs.load import load_recipe
from tests.support.slurm.rig import CONTROLLER, Rig, wait_until
from tests.support.slurm.submitted_run import SubmittedRun

HOSTILE = """a b'c"d$(touch pwned)`touch pwned`;#%j&!~"""


def test_jobs_on_the_same_hosts_train_to_the_end_and_do_not_see_each_other(rig: Rig) -> None:
    long = SubmittedRun(rig, "long", steps=400)
    long.submit("--nodes", "2", "--", "--nodelist=n1,n2")
    sweep = SubmittedRun(rig, "sweep", steps=400, workers={"count": 1})
    sweep.submit("run.seed={task}", "--array", "1-2", "--nodes", "1", "--", "--nodelist=n1")
    tasks = [sweep.task(1), sweep.task(2)]
    for run in (long, *tasks):
        run.wait_for(lambda run=run: bool(run.events("command")), "the driver")
    _no_secret_is_seen(rig, [long, *tasks])
    _warn_while_the_controller_is_down(rig, tasks[0])  # it alone goes back into the queue
    for run in (*tasks, long):
        ended = run.wait_over()
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), run.output()
        assert run.events("finished")
        starts = 2 if run is tasks[0] else 1
        assert [event["job"] for event in run.events("job_started")] == [run.job] * starts
        assert len(run.events("requeued")) == starts - 1
        if run is not tasks[0]:
            assert len(run.events("attempt_started")) == 1  # the end of the others did not disturb it
        assert not run.events("fault")
        assert f"slurm: job {run.job} COMPLETED" in run.stoker("status")
        assert not list((run.folder / "slurm").glob("token-*"))
    assert [run.events("attempt_started")[0]["workers"] for run in (long, *tasks)] == [2, 1, 1]
    assert [load_recipe(run.folder / "recipe.yaml").run.seed for run in tasks] == [1, 2]
    assert "finished: step 400" in tasks[0].stoker("logs")


def _warn_while_the_controller_is_down(rig: Rig, run: SubmittedRun) -> None:
    rig.kill(CONTROLLER, "slurmctld")
    rig.kill("n1", f"cluster.slurm_job.batch_main {run.folder} ", "USR2")
    wait_until(lambda: "no answer from Slurm's controller: asking again" in run.output(), "it asks again")
    wait_until(lambda: bool(run.events("stopped")), "a checkpoint")
    rig.start_controller()


def _no_secret_is_seen(rig: Rig, runs: list[SubmittedRun]) -> None:
    tokens = [path for run in runs for path in (run.folder / "slurm").glob("token-*")]
    assert len(tokens) == len(runs)
    assert {path.stat().st_mode & 0o777 for path in tokens} == {0o600}
    seen = "\n".join(line for host in rig.hosts for line in rig.processes(host))
    assert "stoker-agents" in seen
    scripts = [path.read_text() for run in runs for path in (run.folder / "slurm").glob("*.sbatch")]
    texts = [seen, *scripts, *(run.output() for run in runs)]
    assert not [text for text in texts for token in tokens if token.read_text() in text]


def test_a_run_goes_on_at_the_next_step_after_a_preemption_and_after_its_time_limit(rig: Rig) -> None:
    run = SubmittedRun(rig, "patient", steps=100_000, checkpoint={"every_steps": 10_000})
    run.submit("--nodes", "2", "--partition", "low", "--time", "60")
    run.wait_training()
    rig.inside(CONTROLLER, "sbatch", "--partition=high", "--nodes=3", "--ntasks-per-node=4", "--wrap=sleep 1")
    run.wait_training(starts=2)
    saved = run.events("checkpoint")[-1]["step"]
    # Slurm warns `slurm.warning_s` before the end, which is now less than that away.
    limit_min = run.elapsed_s() // 60 + 2
    rig.inside(CONTROLLER, "scontrol", "update", f"JobId={run.job}", f"TimeLimit={limit_min}")
    run.wait_for(lambda: len(run.events("requeued")) == 2, "the second requeue")
    rig.inside(CONTROLLER, "scontrol", "update", f"JobId={run.job}", "TimeLimit=60")
    run.wait_training(starts=3)
    again = run.events("checkpoint")[-1]["step"]
    assert run.resumed_steps() == [saved, again]
    assert [event["signal"] for event in run.events("warned")] == ["SIGUSR2", "SIGUSR2"]
    told = [int(number) for number in re.findall(r"(\d+) s left", run.output())]
    assert len(told) == 2
    assert max(told) <= 120
    rig.inside(CONTROLLER, "scancel", "--batch", "--signal=USR2", run.job)
    run.stoker("cancel")  # in the middle of the warning, or already in the queue again
    ended = run.wait_over()
    assert (ended["JobState"], ended["ExitCode"]) in (("FAILED", "75:0"), ("CANCELLED", "75:0")), run.output()
    assert run.events("checkpoint")[-1]["step"] > again
    assert len(run.events("job_started")) == 3


def test_warnings_before_the_first_step_requeue_a_job_only_so_often(rig: Rig) -> None:
    run = SubmittedRun(rig, "early", steps=40, folder=HOSTILE, slurm={"max_requeues": 1})
    run.submit("--nodes", "2", "--", f"--comment={HOSTILE}")
    assert f"Comment={HOSTILE} " in rig.inside(CONTROLLER, "scontrol", "--oneliner", "show", "job", run.job).stdout
    for start in (1, 2):
        run.wait_for(lambda start=start: len(run.events("job_started")) == start, f"start {start}")
        for _ in range(2):  # the second means nothing new
            rig.inside(CONTROLLER, "scancel", "--batch", "--signal=USR2", run.job)
    assert run.wait_over()["ExitCode"] == "75:0", run.output()
    assert "not requeued: 1 times in a row without a newer checkpoint (slurm.max_requeues)" in run.output()
    assert len(run.events("requeued")) == 1
    assert not run.events("finished")
    assert not list(rig.folder.rglob("pwned*"))
