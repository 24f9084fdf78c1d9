"""What must not cross the bus is masked here, and an untouched object costs a search for one word.

Always masked: the values of Secrets (and all their annotations, since tools keep whole manifests there), and
``last-applied-configuration`` on every kind, wherever it stands: as an annotation, in a template, or inside a string that holds a
manifest of its own. By rule: further annotations, environment literals, or every annotation that is not on an allow-list.

A mask is ``hmac:<key id>:<16 hex digits>``, keyed per cluster, so equal values stay equal within one cluster and say nothing
elsewhere. Whatever cannot be parsed is not published (``RedactionError``): when in doubt, closed. In memory a masked value is of
the type ``Redacted``; ``masked_paths`` finds masks in anything that somebody wants to write back, and the write path refuses it.
"""

import fnmatch
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ipe_events.errors import IpeError
from ipe_events.events.refs import ResourceRef

Body = bytes | memoryview

LAST_APPLIED = "last-applied-configuration"
MASK = re.compile(r"hmac:[A-Za-z0-9_-]+:[0-9a-f]{16}")

_SECRETS = ResourceRef(resource="secrets")
_ANNOTATIONS = "annotations"
_GLOB = re.compile(r"[*?\[]")
_SHORTEST_NEEDLE = 8

_VALUE = re.compile(
    r"(?i)((?:invalid|unsupported|duplicate|illegal|forbidden) value:?\s*)(\"(?:[^\"\\]|\\.)*\"|[\[{].*[\]}]|[^\s:,;]+)"
)
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"")
_PLAIN_NAME = re.compile(r"[a-z0-9]([-a-z0-9._:/]*[a-z0-9])?|[A-Za-z][A-Za-z0-9]*")
_NAMED = re.compile(
    r"(?:^|\bfulfilled on )[A-Za-z][\w.-]* $"
    r"|\b(?:[Uu]ser|[Gg]roup|(?:[Ss]ub)?[Rr]esource|[Nn]amespace|[Kk]ind|[Vv]ersion|[Ff]ield|[Ww]ebhook|[Pp]olicy) $"
    r"|\bconflict with $"
)
"""What stands before a quoted name in the API server's own sentences: ``pods "web"``, ``User "…"``, ``conflict with "…"``."""
_DUMP = re.compile(r"(?s)\{.*\}|\{.*")
_DENIED = re.compile(r"(?s)\bdenied\b.*")
_ANY_QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|`[^`]*`")
_TOKEN = re.compile(r"(?:eyJ[\w-]+\.[\w-]+\.[\w-]*)|(?:\b[A-Za-z0-9+/_]{32,}={0,2})")
_LAST_APPLIED_TEXT = re.compile(rf"(?s){LAST_APPLIED}.*")


class RedactionError(IpeError):
    """An object could not be examined, so it is not published."""


class Redacted(str):
    """A masked value; the write path refuses it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RedactionRules:
    """What is masked beyond what always is.

    Attributes:
        annotations: globs of annotation keys whose values are masked.
        keep_annotations: when given, only annotations that match one of these globs keep their value.
        env_values: mask literal values of environment variables.
    """

    annotations: tuple[str, ...] = ()
    keep_annotations: tuple[str, ...] | None = None
    env_values: bool = False


def masked_paths(value: Any, path: str = "") -> list[str]:
    """JSON pointers of the masked values in ``value``: what holds any must not be written to a cluster."""
    if isinstance(value, dict):
        found = []
        for key, each in value.items():
            escaped = str(key).replace("~", "~0").replace("/", "~1")
            found += masked_paths(each, f"{path}/{escaped}")
        return found
    if isinstance(value, list | tuple):
        return [pointer for number, each in enumerate(value) for pointer in masked_paths(each, f"{path}/{number}")]
    masked = isinstance(value, Redacted) or (isinstance(value, str) and MASK.search(value) is not None)
    return [path] if masked else []


class Redactor:
    """The redaction of one cluster.

    Args:
        rules: beyond the defaults.
        key: of the masks; at least 32 random bytes that never leave the agent.
    """

    def __init__(self, rules: RedactionRules, key: bytes) -> None:
        self.rules = rules
        self.key_id = hashlib.sha256(b"ipe key id" + key).hexdigest()[:8]
        self._key = key
        self._denied = _matcher(rules.annotations)
        self._kept = None if rules.keep_annotations is None else _matcher(rules.keep_annotations)
        needles = [_needle(glob) for glob in rules.annotations]
        self._everything = rules.env_values or self._kept is not None or None in needles
        self._needles = (LAST_APPLIED.encode(), *(needle for needle in needles if needle is not None))

    # --- bytes -----------------------------------------------------------------------------------------------------------

    def always(self, resource: ResourceRef) -> bool:
        """Whether every object of the resource has to be parsed; otherwise ``suspicious`` decides."""
        return self._everything or resource == _SECRETS

    def suspicious(self, data: bytes) -> bool:
        """Whether anything in ``data`` (one object, or a chunk of many) may have to be masked."""
        return any(needle in data for needle in self._needles)

    def redact(self, resource: ResourceRef, body: Body) -> Body:
        """The object's JSON with everything masked that must be; the same bytes when there is nothing.

        Raises:
            RedactionError: it cannot be examined.
        """
        if not self.always(resource):
            body = bytes(body)
            if not self.suspicious(body):
                return body
        return self.redact_parsed(resource, body)

    def redact_parsed(self, resource: ResourceRef, body: Body) -> bytes:
        """As ``redact``, without the search beforehand.

        Raises:
            RedactionError: it cannot be examined.
        """
        try:
            obj = msgspec.json.decode(body)
            if not isinstance(obj, dict):
                raise RedactionError(f"the object is {type(obj).__name__}", where=str(resource))
            return msgspec.json.encode(self._object(obj, secret=resource == _SECRETS), enc_hook=str)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise RedactionError(f"the object cannot be examined: {error}", where=str(resource)) from error

    # --- values ----------------------------------------------------------------------------------------------------------

    def redact_object(self, obj: dict[str, Any]) -> dict[str, Any]:
        """A masked copy of a parsed object; masked values are ``Redacted``."""
        secret = obj.get("kind") == "Secret" and str(obj.get("apiVersion", "v1")) == "v1"
        return self._object(obj, secret=secret)

    def redact_text(self, text: str) -> str:
        """A message of the API server without the values that it quotes: they can be anything a user wrote.

        Names, kinds and field paths stay readable. A quoted text is kept only where the API server's own sentences name things:
        an admission webhook may quote anything, and so do Go or JSON dumps of whole objects, which are masked as one.
        """
        text = _LAST_APPLIED_TEXT.sub(lambda match: f"{LAST_APPLIED} {self.mask(match[0])}", text)
        text = _VALUE.sub(lambda match: match[1] + self.mask(match[2]), text)
        text = _DUMP.sub(lambda match: self.mask(match[0]), text)
        text = _QUOTED.sub(self._quoted, text)
        text = _DENIED.sub(lambda match: _ANY_QUOTED.sub(lambda quoted: self.mask(quoted[0]), match[0]), text)
        return _TOKEN.sub(lambda match: self.mask(match[0]), text)

    def _quoted(self, match: re.Match[str]) -> str:
        named = _PLAIN_NAME.fullmatch(match[1]) and _NAMED.search(match.string[max(0, match.start() - 300) : match.start()])
        return match[0] if named or not match[1] else self.mask(match[1])

    def mask(self, value: Any) -> Redacted:
        """The mask of a value; equal values have equal masks."""
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else msgspec.json.encode(value)
        digest = hmac.new(self._key, data, hashlib.sha256).hexdigest()[:16]
        return Redacted(f"hmac:{self.key_id}:{digest}")

    def _object(self, obj: dict[str, Any], *, secret: bool) -> dict[str, Any]:
        masked: dict[str, Any] = self._value(obj, "")
        if secret:
            for section in ("data", "stringData"):
                if obj.get(section) is not None:
                    masked[section] = self._all(obj[section])
            metadata = obj.get("metadata")
            if isinstance(metadata, dict) and metadata.get(_ANNOTATIONS):
                masked["metadata"][_ANNOTATIONS] = self._all(metadata[_ANNOTATIONS])
        return masked

    def _all(self, values: Any) -> Any:
        """Every value masked; keys stay."""
        return {key: self.mask(value) for key, value in values.items()} if isinstance(values, dict) else self.mask(values)

    def _value(self, value: Any, key: str) -> Any:
        """A masked copy; ``key`` is the name under which the value stands."""
        if isinstance(value, dict):
            if key == _ANNOTATIONS:
                return {name: self._annotation(name, each) for name, each in value.items()}
            if self.rules.env_values and "name" in value and "value" in value and key == "env":
                value = {**value, "value": self.mask(value["value"])}
            return {
                # `{}` is how managedFields name a field without its value
                name: self.mask(each) if LAST_APPLIED in name and each != {} else self._value(each, name)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._value(each, key) for each in value]
        if isinstance(value, str) and not isinstance(value, Redacted) and self._text_is_suspicious(value):
            return self.mask(value)
        return value

    def _annotation(self, name: str, value: Any) -> Any:
        if LAST_APPLIED in name or self._denied(name) or (self._kept is not None and not self._kept(name)):
            return self.mask(value)
        return self._value(value, "")

    def _text_is_suspicious(self, text: str) -> bool:
        """Whether a string holds a manifest (or part of one) with something to mask."""
        return LAST_APPLIED in text or (len(text) > _SHORTEST_NEEDLE and any(glob in text for glob in self._literals()))

    def _literals(self) -> Iterator[str]:
        return (glob for glob in self.rules.annotations if not _GLOB.search(glob))


def _matcher(globs: tuple[str, ...]) -> Callable[[str], bool]:
    if not globs:
        return lambda _name: False
    pattern = re.compile("|".join(fnmatch.translate(glob) for glob in globs))
    return lambda name: pattern.match(name) is not None


def _needle(glob: str) -> bytes | None:
    """A text that every key matching the glob contains; None when it is too short to search for."""
    longest = max(_GLOB.split(glob.split("[")[0]), key=len)
    return longest.encode() if len(longest) >= _SHORTEST_NEEDLE else None
