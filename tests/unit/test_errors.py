"""The family of errors: every one is ours, says whether a retry helps, and keeps the builtin that people catch."""

import inspect
from typing import Any

import pytest

from ipe_events import errors
from ipe_events.errors import IpeError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, IpeError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_tells_its_story(cls: type[IpeError]):
    assert cls.__doc__
    assert isinstance(cls.retryable, bool)
    extra: dict[str, Any] = {"code": 503} if cls is errors.ServiceError else {}
    error = cls("it broke", where="here", **extra)
    assert str(error) == "here: it broke"
    assert error.args == ("it broke",)


def test_an_error_is_one_line_of_place_message_and_fix():
    assert str(IpeError("bad port 0")) == "bad port 0"
    assert str(IpeError("bad port 0", where="agent.yaml:3")) == "agent.yaml:3: bad port 0"
    assert str(IpeError("bad port 0", where="agent.yaml:3", fix="1–65535")) == "agent.yaml:3: bad port 0 (fix: 1–65535)"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.UsageError, ValueError),
        (errors.BusTimeout, TimeoutError),
        (errors.BusUnavailable, ConnectionError),
        (errors.BusPermissionDenied, PermissionError),
        (errors.KubeTimeout, TimeoutError),
        (errors.KubeNotFound, LookupError),
        (errors.DeclarationError, TypeError),
    ],
)
def test_the_builtin_of_the_same_meaning_catches_it(cls: type[IpeError], builtin: type[Exception]):
    with pytest.raises(builtin):
        raise cls("x")


def test_what_may_pass_by_itself_is_retryable_and_what_somebody_must_change_is_not():
    retryable = {cls.__name__ for cls in CLASSES if cls.retryable}
    assert {"BusUnavailable", "BusTimeout", "KubeUnavailable", "KubeTimeout", "KubeThrottled", "KubeUnauthorized"} <= retryable
    assert not retryable & {"UsageError", "ConfigError", "SchemaError", "BusPermissionDenied", "KubeForbidden", "KubeInvalid"}


def test_errors_of_the_api_carry_its_status_and_reason():
    error = errors.KubeConflict("object changed", status=409, reason="Conflict")
    assert (error.status, error.reason) == (409, "Conflict")
    assert errors.KubeThrottled("slow down", retry_after=7.5).retry_after == 7.5
