"""``ipe completion``: the script that teaches a shell to complete ``ipe``."""

import click
from click.shell_completion import get_completion_class

from ipe_events.cli.common import common_options


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the shell's completion script.

    \b
    bash: ipe completion bash > ~/.local/share/bash-completion/completions/ipe
    zsh:  ipe completion zsh > "${fpath[1]}/_ipe"
    fish: ipe completion fish > ~/.config/fish/completions/ipe.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "ipe", "_IPE_COMPLETE").source())
