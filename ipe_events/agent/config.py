"""The agent's configuration: one YAML file, written by the cluster's owner.

``kind: AgentConfig`` says which clusters are served, what is collected from them and what handlers may do there; documents of
``kind: HandlerGrant`` in the same file add grants one by one. Keys are camelCase as in Kubernetes; an unknown key is refused with
its line and the nearest known one, because a misspelt limit that is ignored is a limit that does not exist.

Durations are seconds or text such as ``90s``, ``10m``, ``1h30m``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ipe_events.agent.grants import Grant, Protected, ResourcePattern, Section
from ipe_events.durations import seconds
from ipe_events.errors import ConfigError, UsageError
from ipe_events.events.refs import ResourceRef
from ipe_events.policy.documents import Document, parse_documents, read_documents

API_VERSION: Final = "ipe.dev/v1alpha1"


def _one_resource(text: str) -> str:
    ResourceRef.parse(text)
    return text


Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]
OneResource = Annotated[str, AfterValidator(_one_resource)]


class Clusters(Section):
    """Which clusters are served. Nothing given: the pod's own cluster if we run in one, else the kubeconfig's current context.

    Attributes:
        name: the cluster's name when there is exactly one; by default its context's, in a pod ``in-cluster``.
        in_cluster: serve the cluster in whose pod we run.
        kubeconfig: file, or several joined with ``:``; by default ``KUBECONFIG``, then ``~/.kube/config``.
        contexts: globs of the kubeconfig's contexts; a glob that matches none is an error.
        allow_exec: programs that a kubeconfig may run to obtain credentials, as it writes them.
    """

    name: str = Field(default="", max_length=253)
    in_cluster: bool = False
    kubeconfig: str | None = None
    contexts: tuple[str, ...] = ()
    allow_exec: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "Clusters":
        if self.in_cluster and (self.kubeconfig or self.contexts):
            raise ValueError("inCluster excludes kubeconfig and contexts")
        return self


class Selector(Section):
    """Which objects of a resource are collected; all conditions must hold. They are applied in the agent.

    Attributes:
        labels: label selector, as ``kubectl -l`` takes it.
        fields: field selector, as ``kubectl --field-selector`` takes it.
    """

    labels: str = ""
    fields: str = ""


class Collect(Section):
    """What may be collected; what handlers declare decides what is.

    Attributes:
        resources: patterns a handler may ask for; ``*``: everything but noise and Secrets.
        always: collected whether or not a handler asks.
        deny: patterns that are never collected.
        namespaces: globs; objects of other namespaces are left out. Cluster-scoped objects always count.
        noise: also collect what changes without meaning anything (Leases, Endpoints, EndpointSlices, Events of leader election).
        secrets: also collect Secrets; their values are masked all the same.
        selectors: resource → which of its objects.
        drop_managed_fields: resources whose ``managedFields`` are dropped.
    """

    resources: tuple[ResourcePattern, ...] = ("*",)
    always: tuple[OneResource, ...] = ()
    deny: tuple[ResourcePattern, ...] = ()
    namespaces: tuple[str, ...] = ("*",)
    noise: bool = False
    secrets: bool = False
    selectors: dict[OneResource, Selector] = Field(default_factory=dict)
    drop_managed_fields: tuple[ResourcePattern, ...] = ("pods", "replicasets.apps", "events", "events.events.k8s.io")


class Redaction(Section):
    """What never crosses the bus in clear, beyond what never does anyway (Secret values, last-applied configuration).

    Attributes:
        annotations: globs of annotation keys whose values are masked.
        keep_annotations: when given, only annotations that match one of these globs keep their value.
        env_values: also mask literal values of environment variables.
        key_file: file with the key of the masks (at least 32 bytes); by default one is made and lives as long as the agent.
    """

    annotations: tuple[str, ...] = ()
    keep_annotations: tuple[str, ...] | None = None
    env_values: bool = False
    key_file: str = ""


class Act(Section):
    """How commands are carried out.

    Attributes:
        writes: whether this agent may write at all; by default yes in a pod, no from a kubeconfig (a hub only reads).
        max_hops: length of a chain of commands that caused each other, above which it is refused as a loop.
        parallel: commands carried out at a time; those for one object are always one after the other.
        timeout: seconds that one request to the API server may take.
        protected: what no grant reaches unless it names it literally.
    """

    writes: bool | None = None
    max_hops: int = Field(default=8, ge=1, le=100)
    parallel: int = Field(default=16, ge=1, le=256)
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 10.0
    protected: Protected = Protected()


class LeaseSettings(Section):
    """The ``coordination.k8s.io`` Lease that only one agent of a cluster holds; only its holder writes.

    Attributes:
        namespace: where it lives; it must exist.
        name: of the Lease object.
        duration: seconds after which a silent holder is replaced.
    """

    namespace: str = Field(default="ipe-system", min_length=1)
    name: str = Field(default="ipe-agent", min_length=1)
    duration: Annotated[Seconds, Field(ge=1, le=300)] = 15.0


class Answers(Section):
    """Limits of what the agent's services answer.

    Attributes:
        rows: of one page.
        bytes: of one page.
        parallel: requests answered at a time per verb.
    """

    rows: int = Field(default=500, ge=1, le=5_000)
    bytes: int = Field(default=1 << 20, ge=16_384, le=6 << 20)
    parallel: int = Field(default=8, ge=1, le=64)


class AgentConfig(Section):
    """The whole file.

    Attributes:
        agent: identity of this process; by default host name and process id.
        heartbeat: seconds between two heartbeats of a cluster.
        health_port: of ``/livez /readyz /metrics``; 0 takes a free port, None serves none.
        health_host: address that port listens on.
    """

    api_version: Literal["ipe.dev/v1alpha1"] = API_VERSION
    kind: Literal["AgentConfig"] = "AgentConfig"
    agent: str = Field(default="", max_length=200)
    clusters: Clusters = Clusters()
    collect: Collect = Collect()
    redaction: Redaction = Redaction()
    grants: tuple[Grant, ...] = ()
    act: Act = Act()
    lease: LeaseSettings = LeaseSettings()
    answers: Answers = Answers()
    heartbeat: Annotated[Seconds, Field(ge=1, le=3600)] = 30.0
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    health_host: str = "127.0.0.1"


def load_config(file: str | Path) -> AgentConfig:
    """The configuration in a YAML file.

    Raises:
        ConfigError: names file, line, path of the key, value and fix.
    """
    return _assemble(read_documents(file), str(file))


def parse_config(text: bytes | str, source: str = "configuration") -> AgentConfig:
    """The configuration in YAML text; ``source`` names it in errors.

    Raises:
        ConfigError: names line, path of the key, value and fix.
    """
    return _assemble(parse_documents(text, source), source)


def quick_grant(text: str) -> Grant:
    """A grant from the command line, ``HANDLER`` or ``HANDLER=MODE``: the verbs that change one field, in any free namespace.

    Raises:
        UsageError: the text is neither.
    """
    handler, _, mode = text.partition("=")
    data = {
        "handler": handler,
        "mode": mode or "observe",
        "verbs": ["patch", "scale", "suspend", "annotate"],
        "resources": ["*"],
    }
    try:
        return Document(f"--grant {text}", data, {}).read(Grant).standing_at(f"--grant {text}")
    except ConfigError as error:
        raise UsageError(error.message, where=f"--grant {text}", fix="write it as --grant HANDLER=enforce") from error


def _assemble(documents: Sequence[Document], source: str) -> AgentConfig:
    """One AgentConfig out of all documents of a file."""
    main: AgentConfig | None = None
    grants: list[Grant] = []
    for document in documents:
        kind, version = document.data.get("kind"), document.data.get("apiVersion")
        if version != API_VERSION:
            raise ConfigError(
                f"apiVersion is {version!r}", where=document.place(("apiVersion",)), fix=f"write `apiVersion: {API_VERSION}`"
            )
        if kind == "AgentConfig":
            if main is not None:
                raise ConfigError("a second AgentConfig", where=document.place(("kind",)), fix="one file holds one")
            main = document.read(AgentConfig)
            grants += [
                grant.standing_at(f"{document.place(('grants', index))}: grants[{index}]")
                for index, grant in enumerate(main.grants)
            ]
        elif kind == "HandlerGrant":
            grants.append(_handler_grant(document))
        else:
            raise ConfigError(
                f"kind is {kind!r}", where=document.place(("kind",)), fix="`kind: AgentConfig` or `kind: HandlerGrant`"
            )
    if main is None:
        raise ConfigError("no AgentConfig in the file", where=source, fix="add a document with `kind: AgentConfig`")
    return main.model_copy(update={"grants": tuple(grants)})


class _Metadata(Section):
    name: str


class _HandlerGrant(Section):
    """The document form of a grant, shaped like the custom resource of the same name."""

    api_version: str
    kind: str
    metadata: _Metadata
    spec: Grant


def _handler_grant(document: Document) -> Grant:
    parsed = document.read(_HandlerGrant)
    return parsed.spec.standing_at(f"{document.place(())}: HandlerGrant {parsed.metadata.name}")
