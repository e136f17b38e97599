"""One aiokafka client: metadata, coordinators and single requests, each bounded in time.

Reading and writing have their own modules; what both need of a cluster is here.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from connectors.kafka.errors import AccessDenied, BrokersUnreachable, UnknownTopic
from connectors.kafka.options import ClientOptions
from streamactors.errors import InvalidConfig, StreamactorsError

CONNECT_SECONDS: Final = 30.0
SETTLE_SECONDS: Final = 1.0
OPERATION_SECONDS: Final = 60.0
# A topic that was created a moment ago, or is being created by the broker because we asked, may not be known yet.
TOPIC_SECONDS: Final = 3.0
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 1.0
WARN_EVERY_SECONDS: Final = 10.0
WARN_AFTER_SECONDS: Final = 2.0

UNKNOWN_TOPIC: Final = 3
DENIED: Final = frozenset({29, 30, 31, 53})
"""Topic, group, cluster, transactional id: not authorised."""
MOVED: Final = frozenset({14, 15, 16, 52})
"""The coordinator is loading, not available, elsewhere, or was replaced."""
BUSY: Final = frozenset({7, 51})
"""Timed out inside the broker; another operation on the same transactional id is under way."""

Log = logging.LoggerAdapter[logging.Logger]


class _NoCredentials(logging.Filter):
    """aiokafka writes every request to the log at level DEBUG, those that carry a password too."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not any(type(argument).__name__.startswith("SaslAuthenticate") for argument in arguments)


logging.getLogger("aiokafka.conn").addFilter(_NoCredentials())


@dataclass(frozen=True, slots=True)
class TopicState:
    """What the brokers say about a topic: an error code, or its partitions."""

    error: int
    partitions: tuple[int, ...]


class Retry:
    """Pauses that grow, an end, and a WARNING for whoever waits with us."""

    def __init__(self, what: str, brokers: str, log: Log, seconds: float) -> None:
        self._what = what
        self._brokers = brokers
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._seconds = seconds
        self._pause = FIRST_PAUSE
        self._warn_at = self._began + WARN_AFTER_SECONDS

    async def pause(self, reason: object) -> None:
        """Raises BrokersUnreachable when the time is up."""
        now = self._loop.time()
        waited = now - self._began
        if waited >= self._seconds:
            raise BrokersUnreachable(
                f"{self._what}: no answer from Kafka at {self._brokers} within {self._seconds:.0f} s ({reason}); "
                "check that the brokers are up and reachable"
            )
        if now >= self._warn_at:
            self._warn_at = now + WARN_EVERY_SECONDS
            self._log.warning("%s: still trying after %.0f s (%s)", self._what, waited, reason)
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class Cluster:
    """Connected between `connect` and `close`; errors name the brokers."""

    def __init__(self, brokers: str, options: ClientOptions, log: Log) -> None:
        self.brokers = brokers
        self._options = options
        self._log = log
        self._client: Any = None
        self._coordinators: dict[tuple[CoordinationType, str], int] = {}
        self.metadata_updates = 0
        """Counts the answers that `metadata` was made from."""

    async def connect(self) -> None:
        """Raises BrokersUnreachable, AccessDenied or InvalidConfig; does not try for longer than CONNECT_SECONDS."""
        try:
            self._client = AIOKafkaClient(
                bootstrap_servers=self.brokers.split(","), **{"client_id": "streamactors", **self._options.connection()}
            )
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"aiokafka refuses the client options: {error}") from None
        self.metadata.add_listener(self._count_update)
        try:
            await connected(self._client.bootstrap())
        except (KafkaConnectionError, TimeoutError) as error:
            raise await self._diagnosis() from error

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _count_update(self, metadata: object) -> None:
        self.metadata_updates += 1

    @property
    def metadata(self) -> Any:
        """aiokafka's ClusterMetadata: what was heard last about the topics given to `follow`."""
        return self._client.cluster

    async def follow(self, topic: str) -> None:
        """Keep `metadata` current for a topic."""
        await asyncio.wait([self._client.add_topic(topic)], timeout=OPERATION_SECONDS)

    async def refresh(self) -> None:
        """Ask for `metadata` anew, and wait for the answer, for its failure, or for OPERATION_SECONDS."""
        await asyncio.wait([self._client.force_metadata_update()], timeout=OPERATION_SECONDS)

    def request_refresh(self) -> None:
        """Ask for `metadata` anew, soon."""
        self._client.force_metadata_update()

    def retry(self, what: str, seconds: float = OPERATION_SECONDS) -> Retry:
        return Retry(what, self.brokers, self._log, seconds)

    async def send(self, node: int, request: Any, group: ConnectionGroup = ConnectionGroup.DEFAULT) -> Any:
        """One request to one broker; raises KafkaError, `retriable` or not."""
        try:
            return await self._client.send(node, request, group=group)
        except KeyError as error:  # aiokafka forgets a connection on which two requests time out at once
            raise NodeNotReadyError(f"the connection to node {node} is gone") from error

    async def topics(
        self, names: Collection[str] | None, *, seconds: float = OPERATION_SECONDS
    ) -> Mapping[str, TopicState]:
        """Of all topics but Kafka's internal ones if `names` is None. Never creates a topic."""
        request = MetadataRequest(None if names is None else sorted(names), allow_auto_topic_creation=False)
        response = await self._ask_any(request, "asking for metadata", seconds)
        return {
            topic: TopicState(code, tuple(sorted(described[1] for described in partitions)))
            for code, topic, internal, partitions in response.topics
            if names is not None or not internal
        }

    async def partitions(self, names: Collection[str]) -> Mapping[str, tuple[int, ...]]:
        """Of these topics; raises UnknownTopic or AccessDenied if one is not there after TOPIC_SECONDS."""
        deadline = asyncio.get_running_loop().time() + TOPIC_SECONDS
        retry = self.retry("asking for metadata")
        while True:
            found = await self.topics(names)
            missing = [name for name in names if found[name].error]
            if not missing:
                return {name: found[name].partitions for name in names}
            if asyncio.get_running_loop().time() > deadline or found[missing[0]].error in DENIED:
                raise self.topic_error(missing[0], found[missing[0]].error)
            await retry.pause(f"topic {missing[0]!r}: {for_code(found[missing[0]].error).__name__}")

    def topic_error(self, topic: str, code: int) -> StreamactorsError:
        if code in DENIED:
            return AccessDenied(
                f"Kafka at {self.brokers} does not let us use topic {topic!r}; grant these credentials access to it"
            )
        return UnknownTopic(
            f"Kafka at {self.brokers} has no topic {topic!r} ({for_code(code).__name__}); "
            "check its name, or create it first (kafka-topics.sh --create)"
        )

    async def _ask_any(self, request: Any, what: str, seconds: float = OPERATION_SECONDS) -> Any:
        retry = self.retry(what, seconds)
        while True:
            try:
                return await self.send(self._client.get_random_node(), request)
            except KafkaError as error:
                self._refuse_fatal(error, what)
                await retry.pause(error)

    async def ask_any(self, request: Any, what: str) -> Any:
        """Any broker; retries until OPERATION_SECONDS are over while it says that it can't now."""
        retry = self.retry(what)
        while (response := await self._ask_any(request, what)).error_code in MOVED | BUSY:
            await retry.pause(for_code(response.error_code).__name__)
        return response

    async def ask_coordinator(
        self,
        kind: CoordinationType,
        key: str,
        request: Any,
        what: str,
        *,
        codes: Callable[[Any], Iterable[int]] = lambda response: (response.error_code,),
        busy: frozenset[int] = BUSY,
        seconds: float = OPERATION_SECONDS,
        may_send: Callable[[], None] = lambda: None,
    ) -> Any:
        """The coordinator of a group or transactional id, wherever it is now; an answer without a transient error.
        `may_send` is called right before each try, and may raise."""
        retry = self.retry(what, seconds)
        while True:
            try:
                node = await self._coordinator(kind, key)
                await self._client.ready(node, group=ConnectionGroup.COORDINATION)  # sending waits for nothing else
                may_send()
                response = await self.send(node, request, ConnectionGroup.COORDINATION)
            except KafkaError as error:
                self._refuse_fatal(error, what)
                self._coordinators.pop((kind, key), None)
                await retry.pause(error)
                continue
            transient = [code for code in codes(response) if code in MOVED or code in busy]
            if not transient:
                return response
            if not busy.issuperset(transient):
                self._coordinators.pop((kind, key), None)
            await retry.pause(for_code(transient[0]).__name__)

    async def _coordinator(self, kind: CoordinationType, key: str) -> int:
        node = self._coordinators.get((kind, key))
        if node is None:
            node = self._coordinators[kind, key] = await self._client.coordinator_lookup(kind, key)
            if self.metadata.broker_metadata(node) is None:
                await self.refresh()
        return node

    def _refuse_fatal(self, error: KafkaError, what: str) -> None:
        """Raises for what no repetition cures; returns for what one may."""
        if isinstance(error, TransactionalIdAuthorizationFailed | GroupAuthorizationFailedError):
            raise AccessDenied(
                f"{what}: Kafka at {self.brokers} refuses it ({type(error).__name__}); grant these credentials access"
            ) from error
        if not is_transient(error):
            raise BrokersUnreachable(f"{what}: Kafka at {self.brokers} answered {error}") from error

    async def _diagnosis(self) -> StreamactorsError:
        """aiokafka only logs why a broker could not be used: try each once more, for a reason to tell."""
        reasons = []
        for host, port, _ in self._client.hosts:
            try:
                async with asyncio.timeout(CONNECT_SECONDS / 3):
                    connection = await create_conn(host, port, **self._connection_settings())
            except (AuthenticationFailedError, SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
                return AccessDenied(
                    f"Kafka at {host}:{port} refused to authenticate: {_words(error)}; "
                    "check the sasl_… entries of client="
                )
            except (OSError, KafkaError, TimeoutError) as error:
                reasons.append(f"{host}:{port}: {_words(error)}")
            else:
                await connection.close()
                reasons.append(f"{host}:{port}: answered late")
        return BrokersUnreachable(
            f"can't connect to Kafka at {self.brokers} ({'; '.join(reasons)}); "
            "check the address, that the brokers are up, and security_protocol in client="
        )

    def _connection_settings(self) -> dict[str, Any]:
        settings = self._options.connection()
        settings.pop("metadata_max_age_ms", None)
        settings.pop("retry_backoff_ms", None)
        settings.pop("connections_max_idle_ms", None)
        return {"client_id": "streamactors", **settings}


async def connected(connecting: Coroutine[Any, Any, None]) -> None:
    """Await aiokafka's first connection, for CONNECT_SECONDS at most, so that cancelling it leaves none behind.

    Raises TimeoutError."""
    bootstrap = asyncio.ensure_future(connecting)
    try:
        await asyncio.wait([bootstrap], timeout=CONNECT_SECONDS)
        if not bootstrap.done():
            raise TimeoutError
        bootstrap.result()
    finally:
        await _settle(bootstrap)


async def _settle(bootstrap: "asyncio.Future[None]") -> None:
    """End it. Cancelled while it waits for its first answer, aiokafka would leave a connection open that nobody knows:
    an answer that is near is let come."""
    try:
        if not bootstrap.done():
            await asyncio.wait([bootstrap], timeout=SETTLE_SECONDS)
    finally:
        bootstrap.cancel()
        await asyncio.gather(bootstrap, return_exceptions=True)


def is_transient(error: KafkaError) -> bool:
    """Whether the same request may succeed later."""
    return bool(error.retriable) or getattr(error, "errno", 0) in MOVED | BUSY


def _words(error: BaseException) -> str:
    """What went wrong with one connection, never a credential."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, KafkaConnectionError):
        return f"{error} (a listener that wants TLS or SASL closes plain connections)"
    return str(error) or type(error).__name__


def by_topic(partitions: Iterable[TopicPartition]) -> list[tuple[str, list[int]]]:
    """As requests want them."""
    grouped: dict[str, list[int]] = {}
    for partition in partitions:
        grouped.setdefault(partition.topic, []).append(partition.partition)
    return list(grouped.items())
