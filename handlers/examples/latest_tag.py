"""Finds workloads whose containers follow the tag ``latest``: nobody can say what runs there, nor go back to it."""

from ipe_events import Change, Event, handler
from ipe_events.events import Finding, Severity


class LatestTag(Finding):
    """Containers without a pinned image.

    Attributes:
        containers: their names.
    """

    containers: tuple[str, ...]


def unpinned(spec: dict[str, object]) -> tuple[str, ...]:
    """Names of the containers whose image has no tag or the tag ``latest``, and no digest."""
    containers = spec.get("containers")
    names = []
    for container in containers if isinstance(containers, list) else []:
        image, _, digest = str(container.get("image", "")).partition("@")
        tag = image.rpartition("/")[2].partition(":")[2]
        if not digest and tag in {"", "latest"}:
            names.append(str(container.get("name", "")))
    return tuple(names)


@handler(on=("deployments.apps", "statefulsets.apps", "daemonsets.apps"), latest=True)
async def latest_tag(event: Event[Change]) -> LatestTag | None:
    change = event.payload
    if change.verb in {"deleted", "left"} or not (names := unpinned(change.object["spec"]["template"]["spec"])):
        return None
    return LatestTag(
        cluster=change.cluster,
        subject=change.ref,
        severity=Severity.LOW,
        message=f"{', '.join(names)} of {change} follows the tag latest",
        evidence=(event.meta.id,),
        containers=names,
    )
