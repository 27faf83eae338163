"""The runner of the suites: what failed once is told, and only what fails alone too is a failure."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import suites

TESTS = """
from pathlib import Path
import pytest

def test_that_passes(): pass

def test_that_is_skipped(): pytest.skip("not here")

def test_that_fails_the_first_time():
    seen = Path(__file__).with_name("seen")
    again = seen.exists()
    seen.touch()
    assert again
"""
ALWAYS = "\ndef test_that_fails(): assert False\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Within the checkout: pytest names tests from elsewhere in a way that it does not take itself."""
    suites.BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=suites.BUILD) as name:
        yield Path(name)


def _run(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> suites.Result:
    path = folder / "test_mini.py"
    path.write_text(text)
    monkeypatch.setitem(suites.SUITES, "mini", (str(path),))
    monkeypatch.setattr(suites, "BUILD", folder)
    return suites.run("mini")


def test_a_test_that_fails_once_is_unsteady_and_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(folder, TESTS, monkeypatch)
    assert (result.passed, result.skipped, result.failed, result.ok) == (2, 1, [], True)
    assert [test.rpartition("::")[2] for test in result.unsteady] == ["test_that_fails_the_first_time"]
    assert "| mini | 2 | 0 | 1 | 1 |" in "\n".join(suites.summary([result]))


def test_a_test_that_fails_alone_too_or_cannot_be_collected_fails_the_suite(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _run(folder, TESTS + ALWAYS, monkeypatch)
    assert [test.rpartition("::")[2] for test in result.failed] == ["test_that_fails"]
    assert not result.ok
    assert not _run(folder, "import nothing_of_this_name\n", monkeypatch).ok
