"""Types are API: what users may write passes mypy strict, what they must not write is refused where it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(file: Path, cache: Path) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(cache)]
    config = ["--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, *config, str(file)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode in {0, 1}, done.stderr + done.stdout
    return [line for line in done.stdout.splitlines() if f"{file.name}:" in line and ": error:" in line]


@pytest.mark.timeout(300)
def test_types(tmp_path):
    cache = tmp_path / "mypy"
    assert mypy(HERE / "accepted.py", cache) == []
    # no .py in the tree: the linters of this project must not read it
    refused = tmp_path / "refused.py"
    refused.write_text((HERE / "refused.py.txt").read_text())
    expected = {
        (number, match[1])
        for number, line in enumerate(refused.read_text().splitlines(), 1)
        if (match := re.search(r"# expect: ([\w-]+)", line))
    }
    found = {(int(re.findall(r":(\d+):", line)[0]), re.findall(r"\[([\w-]+)\]$", line)[0]) for line in mypy(refused, cache)}
    # a refused decorator also leaves its function untyped, on the same line
    assert expected == {one for one in found if one[1] != "untyped-decorator"}
