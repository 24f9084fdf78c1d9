"""``ipe demo``: the whole story on one machine, told as it truly happens.

The stage (``demo_stage``) is real where it can be: a ``nats-server`` with JetStream, the agents that ``ipe agent run`` runs, the
handler file that the README shows. Only the clusters are simulated, and labelled so; with ``--kubeconfig`` not even those. The
story (``demo_story``) watches the bus and awaits each step there, with a deadline: what did not happen is said, and the exit code
is 1.
"""

from pathlib import Path

import click

from ipe_events.cli.common import FINDINGS, Duration, Session, common_options, output_options, pass_session, run


@click.command()
@click.option("--keep", is_flag=True, help="Stay up afterwards, with a context `demo` for a second terminal, until Ctrl-C.")
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="Tell the story on your own cluster (the file's current context); it is only observed, nothing is written.",
)
@click.option("--pace", type=Duration(), default="3s", show_default=True, metavar="TIME", help="Pause between chapters.")
@common_options
@output_options
@pass_session
def command(session: Session, *, keep: bool, kubeconfig: Path | None, pace: float) -> int:
    """Watch the whole story happen, on this machine, in twenty seconds."""
    from ipe_events.cli.demo_story import tell

    return 0 if run(tell(session, keep=keep, kubeconfig=kubeconfig, pace=pace)) else FINDINGS
