"""``python -m ipe_events.testing.fake``: a simulated cluster in its own process; prints its URL as the first line.

With ``--bench-watch N`` it is the bench server instead: pods only, N pre-rendered events per watch, as fast as the client reads.
"""

import asyncio
import signal
import sys
from pathlib import Path

import click

from ipe_events.testing.fake.bench import BenchServer
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.load import LoadGenerator


@click.command(context_settings={"max_content_width": 120})
@click.option("--name", default="fake", show_default=True, help="The cluster's name.")
@click.option("--port", default=0, show_default=True, help="Port on loopback; 0 takes a free one.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="File with the bearer token.")
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="Write a kubeconfig to this file.")
@click.option("--seed", default=0, show_default=True, help="Of the generated objects.")
@click.option("--pods", default=0, show_default=True, help="Generated pods to start with.")
@click.option("--deployments", default=0, show_default=True, help="Generated deployments to start with.")
@click.option("--controllers", is_flag=True, help="Deployments make ReplicaSets and Pods.")
@click.option("--bench-watch", default=0, help="Serve pods only: this many pre-rendered events per watch.")
def main(**options: object) -> None:
    """Run a simulated Kubernetes cluster until SIGINT or SIGTERM."""
    bench_watch = options.pop("bench_watch")
    if isinstance(bench_watch, int) and bench_watch > 0:
        _serve_bench(bench_watch, **{name: options[name] for name in ("pods", "seed", "port")})  # type: ignore[arg-type]  # click types them
    else:
        token_file = options.pop("token_file")
        token = token_file.read_text().strip() if isinstance(token_file, Path) else None
        asyncio.run(_serve(token=token, **options))  # type: ignore[arg-type]  # click types them


def _serve_bench(events: int, *, pods: int, seed: int, port: int) -> None:
    with BenchServer(events, objects=pods, seed=seed, port=port) as server:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        click.echo(server.url)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            return


async def _serve(
    *, name: str, port: int, token: str | None, kubeconfig: Path | None, seed: int, pods: int, deployments: int,
    controllers: bool,
) -> None:  # fmt: skip
    generator = LoadGenerator(seed)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    async with FakeCluster(name, token=token, controllers=controllers, port=port, seed=seed) as cluster:
        generator.populate(cluster, pods=pods, deployments=deployments)
        if kubeconfig is not None:
            cluster.kubeconfig(kubeconfig)
        click.echo(cluster.url)
        await done.wait()


if __name__ == "__main__":
    main()
