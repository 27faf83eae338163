import subprocess
import sys
from pathlib import Path

import pytest

from cluster.run.run_lock import RunLock, is_held
from configs.errors import RunFolderError

HOLD = (
    "import sys; from pathlib import Path; from cluster.run.run_lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_lock_refuses_a_second_process_and_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with (
            pytest.raises(RunFolderError, match=f"pid {holder.pid}, host .*, since 20.*using {tmp_path};"),
            RunLock(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
