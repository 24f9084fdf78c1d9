"""The collector as a process that can be killed: ``python collecting.py NATS-URL KUBECONFIG CLUSTER [SELECTOR]``.

It is what ``ipe agent run`` runs, with settings that write resume points often and notice silence soon, so that a kill finds
every window open.
"""

import asyncio
import sys

from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession

CONFIGMAPS = ResourceRef.parse("configmaps")


async def collect(url: str, kubeconfig: str, cluster: str, selector: str = "") -> None:
    """Collect ConfigMaps until killed."""
    settings = CollectSettings(
        always=(CONFIGMAPS,),
        selections={CONFIGMAPS: (selector, "")} if selector else {},
        silent_seconds=1.5,
        checkpoint_seconds=0.05,
        index_seconds=0.1,
        heartbeat=60.0,
        page=7,
        window=64,
    )
    async with (
        await Bus.connect(BusSettings(servers=(url,)), name="chaos-agent") as bus,
        await KubeSession.open(ClusterSource(cluster, kubeconfig)) as session,
    ):
        await Collector(cluster, session, bus, settings, agent_id="chaos-agent").run()


if __name__ == "__main__":
    asyncio.run(collect(*sys.argv[1:]))
