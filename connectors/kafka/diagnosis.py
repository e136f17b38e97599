"""What can be told of the brokers before a job runs. Asks only: nothing is created, written or committed."""

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import ApiVersionRequest, DescribeConfigsRequest

from connectors.kafka.cluster import DENIED, Cluster, TopicState
from connectors.kafka.options import ClientOptions
from connectors.kafka.splits import Topics
from connectors.kafka.transactions import timeout_ms
from streamactors.diagnosis import Finding, PlannedStep

FETCH: Final = 1
RELEASES: Final = ((17, "3.9"), (16, "3.7"), (15, "3.5"), (13, "3.1"), (12, "2.7"), (11, "2.3"), (10, "2.1"))
"""By the newest version of the fetch request: the release that brought it. Brokers don't tell theirs."""
BROKER: Final = 4
MAXIMUM: Final = "transaction.max.timeout.ms"


@asynccontextmanager
async def _connected(brokers: str, client: ClientOptions, step: PlannedStep) -> AsyncIterator[Cluster]:
    cluster = Cluster(brokers, client, step.log)
    try:
        await cluster.connect()
        yield cluster
    finally:
        await cluster.close()


async def of_source(brokers: str, client: ClientOptions, topics: Topics, step: PlannedStep) -> Sequence[Finding]:
    async with _connected(brokers, client, step) as cluster:
        findings = await _brokers(cluster)
        if any(found.level == "problem" for found in findings):
            return findings
        states = await _states(cluster, topics)
        findings += _topics(brokers, states)
        if isinstance(topics, re.Pattern) and not states:
            told = "nothing is read until there is one"
            findings.append(Finding("warning", "topics", f"none matches /{topics.pattern}/: {told}"))
        return [*findings, *_parallelism(states, step)]


async def of_sink(
    brokers: str, client: ClientOptions, topic: str | None, step: PlannedStep, *, transactional: bool
) -> Sequence[Finding]:
    """`topic` None: each record names its own."""
    limit = timeout_ms(client.get("transaction_timeout_ms", None), step.checkpoint_timeout) if transactional else None
    async with _connected(brokers, client, step) as cluster:
        findings = await _brokers(cluster)
        if any(found.level == "problem" for found in findings):
            return findings
        if topic is not None:
            findings += _topics(brokers, await _states(cluster, topic))
        return findings if limit is None else [*findings, await _transactions(cluster, limit)]


# ------------------------------------------------------------------------------------------------------------- brokers
async def _brokers(cluster: Cluster) -> list[Finding]:
    """Each of them, at the address that it gives itself: the one that was dialled is often another."""
    findings, releases = [], []
    for broker in sorted(cluster.metadata.brokers()):
        try:
            answer = await cluster.send(broker.nodeId, ApiVersionRequest())
        except (KafkaError, OSError) as error:
            findings.append(_unreachable(cluster, broker, error))
        else:
            releases.append(_release(answer.api_versions))
    if releases:
        count = f"{len(releases)} broker{'s' if len(releases) > 1 else ''}"
        told = f"{count} at {cluster.brokers}, Kafka {min(releases, key=_numbers)} or newer"
        findings.insert(0, Finding("ok", "brokers", told))
    return findings


def _unreachable(cluster: Cluster, broker: Any, error: Exception) -> Finding:
    return Finding(
        "problem",
        "brokers",
        f"{cluster.brokers} answers, but names a broker {broker.host}:{broker.port} that can't be reached "
        f"({type(error).__name__})",
        "set advertised.listeners of that broker to an address that works from this machine",
    )


def _release(versions: Sequence[tuple[int, int, int]]) -> str:
    newest = max((highest for key, _, highest in versions if key == FETCH), default=0)
    return next((release for version, release in RELEASES if newest >= version), "0.11")


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


# -------------------------------------------------------------------------------------------------------------- topics
async def _states(cluster: Cluster, topics: Topics) -> Mapping[str, TopicState]:
    if isinstance(topics, re.Pattern):
        found = await cluster.topics(None)
        return {name: state for name, state in found.items() if topics.fullmatch(name)}
    return await cluster.topics((topics,) if isinstance(topics, str) else topics)


def _topics(brokers: str, states: Mapping[str, TopicState]) -> list[Finding]:
    return [_topic(brokers, name, state) for name, state in states.items()]


def _topic(brokers: str, name: str, state: TopicState) -> Finding:
    if not state.error:
        count = len(state.partitions)
        return Finding("ok", "topics", f"{name}: {count} partition{'' if count == 1 else 's'}")
    if state.error in DENIED:
        remedy = "grant these credentials access to it"
        return Finding("problem", "topics", f"Kafka at {brokers} does not let us use topic {name!r}", remedy)
    remedy = "check its name, or create it first (kafka-topics.sh --create)"
    return Finding("problem", "topics", f"Kafka at {brokers}: {name!r}: {for_code(state.error).__name__}", remedy)


def _parallelism(states: Mapping[str, TopicState], step: PlannedStep) -> Iterator[Finding]:
    partitions = sum(len(state.partitions) for state in states.values())
    if 0 < partitions < step.parallelism:
        yield Finding(
            "warning",
            "parallelism",
            f"{step.parallelism} subtasks read {partitions} partitions: some have nothing to do",
            f"parallelism={partitions} on this source, or more partitions",
        )


# -------------------------------------------------------------------------------------------------------- transactions
async def _transactions(cluster: Cluster, wanted: int) -> Finding:
    maximum = await _maximum(cluster)
    if maximum is None:
        told = f"time-out {wanted / 1000:g} s; these credentials may not read the brokers' {MAXIMUM}"
        return Finding("warning", "transactions", told, f"see that {MAXIMUM} is not below it")
    if wanted > maximum:
        return Finding(
            "problem",
            "transactions",
            f"the time-out of {wanted / 1000:g} s is above the brokers' {MAXIMUM} of {maximum / 1000:g} s",
            f"raise {MAXIMUM} on the brokers, lower Checkpoints(timeout=…), or give "
            "client={'transaction_timeout_ms': …}",
        )
    return Finding("ok", "transactions", f"time-out {wanted / 1000:g} s, of at most {maximum / 1000:g} s")


async def _maximum(cluster: Cluster) -> int | None:
    """None where the brokers don't tell us."""
    limits = []
    for broker in cluster.metadata.brokers():
        request = DescribeConfigsRequest([(BROKER, str(broker.nodeId), [MAXIMUM])])
        try:
            answer = await cluster.send(broker.nodeId, request)
        except KafkaError:
            return None
        for code, _, _, _, entries in answer.resources:
            limits += [int(entry[1]) for entry in entries if not code and entry[0] == MAXIMUM and entry[1] is not None]
    return min(limits, default=None)
