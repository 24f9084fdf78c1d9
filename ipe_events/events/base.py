"""What all payloads share: a topic, a version, and the rule on unknown fields.

Readers of events ignore fields that they do not know, so that a newer writer does not break them (``Payload``). What asks for an
effect is read strictly, so that nothing that its author wrote is overlooked (``Request``). ``ipe_events.events.codec.decode``
holds to this at every depth, also where both kinds share a part (``ObjectRef``); bodies from the bus are read with it alone.
"""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ipe_events.subjects import EVENT, Topic


def _kebab(name: str) -> str:
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
    return words.lstrip("-")


Name = Annotated[str, Field(min_length=1, max_length=253)]
"""The name of a cluster, handler or user: free text, one token of a subject."""


class Model(BaseModel):
    """A part of a payload: immutable, unknown fields ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class Payload(Model):
    """Root of everything that handlers receive and return as JSON bodies.

    Subclass it for payloads of your own: they travel on ``ipe.event.<handler>.<type>``.

    Attributes:
        topic: the family of subjects that carries it.
        type_name: its name in subjects and ``ce-type``; by default the class name in kebab case.
        type_version: of the payload's schema, part of ``ce-type``; grows when a change would break a reader.
    """

    topic: ClassVar[Topic] = EVENT
    type_name: ClassVar[str] = ""
    type_version: ClassVar[int] = 1

    @classmethod
    def __pydantic_init_subclass__(cls, **_kwargs: object) -> None:
        if "type_name" not in cls.__dict__:
            cls.type_name = _kebab(cls.__name__)

    @classmethod
    def ce_type(cls) -> str:
        """CloudEvents type: ``dev.ipe.<topic>.<type>.v<type version>``."""
        return f"dev.ipe.{cls.topic.name}.{cls.type_name}.v{cls.type_version}"


class Request(Payload):
    """A payload that asks for an effect: an unknown field is refused, because overlooking it could do harm."""

    model_config = ConfigDict(extra="forbid")


class RequestPart(Model):
    """A part of a request, or a question to a service: equally strict."""

    model_config = ConfigDict(extra="forbid")
