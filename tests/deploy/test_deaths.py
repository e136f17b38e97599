"""Why an actor is gone, of all that Ray says about it."""

from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, ActorUnavailableError

from streamactors.deploy.deaths import in_a_line


def test_the_reason_of_a_death_is_told() -> None:
    context = ActorDiedErrorContext(
        error_message="The node ran out of memory.\nSee its log.",
        class_name="StreamactorsWorker",
        actor_id=b"\1" * 16,
        pid=17,
        name="streamactors/orders/worker-1",
        node_ip_address="10.0.0.7",
    )
    assert in_a_line(ActorDiedError(context)) == "ActorDiedError: The node ran out of memory. See its log."


def test_of_anything_else_the_first_line() -> None:
    told = in_a_line(ActorUnavailableError("it does not answer\nat all", b"\1" * 16))
    assert told.startswith("ActorUnavailableError: The actor 0101") and told.endswith("it does not answer")
    assert in_a_line(ConnectionError()) == "ConnectionError: "


def test_it_is_bounded() -> None:
    assert len(in_a_line(ConnectionError("x" * 10_000))) < 500
