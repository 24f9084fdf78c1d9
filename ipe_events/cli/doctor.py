"""``ipe doctor``: what could be wrong, checked in order, each finding with its fix.

The checks (``checks``) are independent; one that needs what an earlier one found missing is skipped and says so. Exit code 1 when
a check failed; a warning alone does not fail.
"""

from pathlib import Path

import click

from ipe_events.cli.checks import Finding, examine
from ipe_events.cli.common import FINDINGS, Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Table, clean, colourful, print_items, tell

TABLE: Table[Finding] = Table(
    columns=(
        Column("#", lambda one: one.number),
        Column("CHECK", lambda one: one.check),
        Column("STATUS", lambda one: one.status),
        Column("DETAIL", lambda one: one.detail),
        Column("FIX", lambda one: one.fix),
    ),
    name=lambda one: f"{one.check}={one.status}",
    data=lambda one: {"number": one.number, "check": one.check, "status": one.status, "detail": one.detail, "fix": one.fix},
)
_MARKS = {"ok": ("✔", "green"), "warning": ("!", "yellow"), "failed": ("✘", "red"), "skipped": ("-", "bright_black")}


@click.command()
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also check this cluster (the file's current context): reachable, and which rights these credentials have.",
)
@click.option("--kube-context", default="", metavar="NAME", help="Another context of that file.")
@common_options
@output_options
@pass_session
def command(session: Session, *, kubeconfig: Path | None, kube_context: str) -> int:
    """Check bus, clusters and handlers, and say how to fix what is wrong."""
    findings = run(examine(session, kubeconfig=kubeconfig, kube_context=kube_context))
    if session.output == "table":
        _explain(findings)
    else:
        print_items(session, findings, TABLE)
    return FINDINGS if any(finding.status == "failed" for finding in findings) else 0


def _explain(findings: list[Finding]) -> None:
    for finding in findings:
        mark, colour = _MARKS[finding.status]
        shown = click.style(mark, fg=colour) if colourful() else mark
        tell(f"{finding.number:>2} {shown} {finding.check}: {clean(finding.detail)}")
        if finding.fix:
            tell(f"     fix: {clean(finding.fix)}")
    counts = {status: sum(finding.status == status for finding in findings) for status in _MARKS}
    tell(", ".join(f"{count} {status}" for status, count in counts.items() if count))
