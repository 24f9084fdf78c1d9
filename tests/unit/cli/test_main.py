"""The command tree: lazy nouns, one-line errors, exit codes, the start-up budget's causes."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import click
import pytest
from click.testing import CliRunner

from ipe_events.cli import common, main
from ipe_events.errors import BusUnavailable, ConfigError, UsageError

BUILT = [noun for noun, (module, _) in sorted(main.NOUNS.items()) if find_spec(module)]


def invoke(*arguments: str):
    return CliRunner().invoke(main.cli, list(arguments))


def raising(error: BaseException) -> click.Command:
    @click.command("boom")
    @common.common_options
    def boom() -> None:
        raise error

    return boom


@pytest.fixture
def boom(monkeypatch):
    def fail(error: BaseException, *arguments: str):
        monkeypatch.setattr(main.Root, "get_command", lambda _self, _ctx, _name: raising(error))
        return invoke("boom", *arguments)

    return fail


def test_every_noun_is_built():
    assert sorted(main.NOUNS) == BUILT


@pytest.mark.parametrize("noun", BUILT)
def test_the_table_of_nouns_repeats_each_commands_help(noun):
    module, line = main.NOUNS[noun]
    command = import_module(module).command
    assert command.get_short_help_str(limit=200) == line.rstrip(".") or command.get_short_help_str(limit=200) == line


def commands_below(command: click.Command, path: tuple[str, ...]):
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands_below(inner, (*path, name))


@pytest.mark.parametrize("noun", BUILT)
def test_every_command_explains_itself_and_takes_the_shared_options(noun):
    for path, command in commands_below(import_module(main.NOUNS[noun][0]).command, (noun,)):
        done = invoke(*path, "--help")
        assert done.exit_code == 0, path
        assert (command.help or "").strip(), path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)
        if not isinstance(command, click.Group):
            names = {name for parameter in command.params for name in parameter.opts}
            assert {"--debug", "-q", "-v", "--timeout"} <= names, path


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from ipe_events.cli.main import cli\n"
        "try: cli.main([sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "heavy = {'nats', 'pydantic', 'aiohttp', 'rich', 'yaml', 'kubernetes_asyncio', 'opentelemetry', 'structlog', 'asyncio'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope"], "error: ipe: no such option '--nope' (fix: see `ipe --help`)"),
        (["nope"], "error: ipe: no such command 'nope' (fix: see `ipe --help`)"),
        (["topcs", "list"], "error: ipe: no such command 'topcs'. Did you mean 'topics'? (fix: see `ipe --help`)"),
        (
            ["commands", "list", "--status", "appled"],
            "error: ipe commands list: invalid value for '--status': 'appled' is not",
        ),
        (["topics", "lst"], "error: ipe topics: no such command 'lst'"),
        (["topics", "list", "-o", "xml"], "error: ipe topics list: invalid value for '-o' / '--output': 'xml' is not one of"),
        (["topics", "list", "--timeout", "5x"], "error: ipe topics list: invalid value for '--timeout': '5x' is not a duration"),
        (["topics", "list", "chnge"], "error: topics: unknown topic 'chnge' (fix: did you mean change"),
    ],
)
def test_a_bad_command_line_is_one_line_with_the_fix(arguments, line):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert "(fix: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no", where="a flag", fix="say yes"), 2, "error: a flag: no (fix: say yes)\n"),
        (ConfigError("bad\nvalue", where="file.yaml:3"), 3, "error: file.yaml:3: bad value\n"),
        (BusUnavailable("refused", where="NATS at nats://x"), 3, "error: NATS at nats://x: refused\n"),
        (FileNotFoundError(2, "No such file or directory", "gone.yaml"), 3, "error: gone.yaml: No such file or directory\n"),
        (ExceptionGroup("two", [ConfigError("first"), ConfigError("second")]), 3, "error: first (and 1 more)\n"),
        (KeyError("x"), 70, "error: internal: KeyError: 'x' (fix: run it again with --debug and report what it shows)\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(boom, error, code, line):
    done = boom(error)
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", line)


def test_a_traceback_is_shown_with_debug_alone(boom):
    assert "Traceback" not in boom(ConfigError("bad")).stderr
    assert "Traceback" in boom(ConfigError("bad"), "--debug").stderr


@pytest.mark.parametrize("arguments", [["topics", "list", "-o", "json"], ["--help"], ["topics", "--help"]])
def test_a_closed_pipe_ends_in_silence_and_is_no_failed_check(arguments):
    done = _with_closed(arguments, "stdout")
    assert (done.returncode, done.stderr) == (141, "")


def test_an_error_that_nobody_can_read_is_a_closed_pipe_too():
    done = _with_closed(["nope"], "stderr")
    assert (done.returncode, done.stdout) == (141, "")


def _with_closed(arguments: list[str], name: str) -> subprocess.CompletedProcess[str]:
    """Run ``ipe`` in a process whose stream ``name`` is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from ipe_events.cli.main import main; sys.argv[0] = 'ipe'; main()"
    stdout, stderr = (writer if stream == name else subprocess.PIPE for stream in ("stdout", "stderr"))
    try:
        return subprocess.run([sys.executable, "-c", code, *arguments], stdout=stdout, stderr=stderr, text=True, check=False)
    finally:
        os.close(writer)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell):
    done = invoke("completion", shell)
    assert done.exit_code == 0
    assert "_IPE_COMPLETE" in done.stdout


def test_options_are_accepted_before_the_noun_and_after_the_verb():
    assert invoke("--debug", "topics", "list").exit_code == 0
    assert invoke("topics", "list", "--debug", "-o", "name").stdout.startswith("change\n")


def test_the_version_is_the_distributions():
    from importlib.metadata import version

    assert invoke("--version").stdout == f"ipe {version('ipe-events')}\n"
