"""The page on testing handlers: its tests pass for a user in an empty folder, and its command line exists."""

import asyncio
import importlib
import re
import sys
from pathlib import Path

import ipe_events.testing

PAGE = Path(ipe_events.testing.__file__).with_name("README.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^```python title=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


async def run(*arguments: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_the_snippets_pass_in_an_empty_folder_and_are_typed(tmp_path):
    assert set(SNIPPETS) == {"test_page.py", "test_cluster.py"}
    for title, text in SNIPPETS.items():
        (tmp_path / title).write_text(text)
    assert "5 passed" in await run("-m", "pytest", "-q", "-p", "no:randomly", "--rootdir", ".", cwd=tmp_path)
    await run("-c", "from ipe_events.cli.main import main; main()", "handlers", "new", "zero_guard", cwd=tmp_path)
    await run("-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), ".", cwd=tmp_path)


def test_what_the_page_names_exists():
    for name in re.findall(r"`bus\.(\w+)", PAGE):
        assert hasattr(ipe_events.testing.TestBus, name) or name == "results", name
    line = re.search(r"^python -m (\S+) (.*)$", PAGE, re.MULTILINE)
    assert line is not None
    main = importlib.import_module(f"{line[1]}.__main__").main
    options = {option for parameter in main.params for option in parameter.opts}
    assert set(re.findall(r"--\w+", line[2])) <= options
