"""What an outcome says: whole where it fits, and honest where it is cut."""

from datetime import UTC, datetime, timedelta

from ipe_events.agent.guardrails import Addressee, Refusal
from ipe_events.agent.history import Chains
from ipe_events.agent.job import Job
from ipe_events.agent.wording import Wording
from ipe_events.errors import KubeInvalid
from ipe_events.events.command import Command, Scale
from ipe_events.events.outcome import Status
from ipe_events.events.refs import ObjectRef
from ipe_events.telemetry.trace import new_trace
from ipe_events.testing import FakeClock


class Masking:
    """Redacts one word."""

    def redact_object(self, obj: dict[str, object]) -> dict[str, object]:
        return obj

    def redact_text(self, text: str) -> str:
        return text.replace("s3cr3t", "hmac:k1:0")


def job_at(now: datetime) -> Job:
    command = Command(
        id="c-1",
        handler="guard",
        cluster="c1",
        target=ObjectRef(group="apps", version="v1", resource="deployments", namespace="shop", name="web"),
        action=Scale(replicas=1),
        reason="a test wants it",
        issued=now,
        expires=now + timedelta(minutes=1),
    )
    return Job(command, Addressee("c1", "guard", "scale"), "digest", 0.0, new_trace())


def test_a_refusal_by_expiry_is_expired_only_when_it_is():
    clock = FakeClock(datetime(2026, 11, 22, tzinfo=UTC))
    wording, job = Wording("a", Chains(), Masking(), clock), job_at(clock.now())
    assert wording.refused(job, Refusal("expiry", "it lives too long")).status is Status.REFUSED
    clock.advance("2m")
    assert wording.refused(job, Refusal("expiry", "too late")).status is Status.EXPIRED


def test_the_api_servers_words_are_redacted_and_a_cut_is_said():
    clock = FakeClock()
    wording, job = Wording("a", Chains(), Masking(), clock), job_at(clock.now())
    failed = wording.failed(job, KubeInvalid("s3cr3t " + "x" * 5_000))
    assert failed.message.startswith("hmac:k1:0 x")
    assert failed.message.endswith("… (cut, 5,010 characters)")
    assert len(failed.message) == 4_000
    assert (failed.id, failed.reason) == (wording.refused(job, Refusal("mode", "")).id, "KubeInvalid")
