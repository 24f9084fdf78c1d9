"""Caps deployments at 50 replicas."""

from ipe_events import Change, Commands, Event, handler


@handler(on="deployments.apps", clusters="prod-*")
async def scale_guard(event: Event[Change], commands: Commands) -> None:
    if event.payload.verb != "deleted" and event.payload.object["spec"]["replicas"] > 50:
        await commands.patch(event.payload, {"/spec/replicas": 50}, reason="cap 50", expires="10m")
