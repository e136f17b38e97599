"""The `client=` options: passed on to aiokafka, checked by name, and never shown."""

from collections.abc import Mapping
from typing import Any, Final

from aiokafka.conn import collect_hosts

from streamactors.errors import InvalidConfig

CONNECTION: Final = frozenset(
    {
        "client_id",
        "connections_max_idle_ms",
        "metadata_max_age_ms",
        "request_timeout_ms",
        "retry_backoff_ms",
        "sasl_kerberos_domain_name",
        "sasl_kerberos_service_name",
        "sasl_mechanism",
        "sasl_oauth_token_provider",
        "sasl_plain_password",
        "sasl_plain_username",
        "security_protocol",
        "ssl_context",
    }
)
READING: Final = frozenset(
    {
        "check_crcs",
        "client_rack",
        "fetch_max_bytes",
        "fetch_max_wait_ms",
        "fetch_min_bytes",
        "max_partition_fetch_bytes",
        "max_poll_records",
    }
)
WRITING: Final = frozenset(
    {"compression_type", "max_batch_size", "max_request_size", "partitioner", "transaction_timeout_ms"}
)
# Where aiokafka has an option for what is an argument here.
INSTEAD: Final = {
    "bootstrap_servers": "brokers",
    "group_id": "group",
    "isolation_level": "isolation",
    "auto_offset_reset": "start",
    "enable_auto_commit": "group",
    "key_deserializer": "key",
    "value_deserializer": "value",
    "key_serializer": "key",
    "value_serializer": "value",
    "acks": "delivery",
    "enable_idempotence": "delivery",
    "transactional_id": "transactional_id_prefix",
}


def checked_brokers(owner: str, brokers: str) -> str:
    """`host:port`, comma-separated; raises InvalidConfig."""
    servers = [server.strip() for server in brokers.split(",")]
    try:
        if not all(servers):
            raise ValueError("an empty entry")
        collect_hosts(servers, randomize=False)
    except ValueError as error:
        raise InvalidConfig(f"{owner}: brokers {brokers!r} is not host:port, or several with commas: {error}") from None
    return ",".join(servers)


class ClientOptions:
    """Raises InvalidConfig for an option that is not aiokafka's, or that is an argument of the connector itself."""

    __slots__ = ("_values",)

    def __init__(self, owner: str, given: Mapping[str, Any] | None, accepted: frozenset[str]) -> None:
        self._values = dict(given or {})
        for name in self._values:
            if name in INSTEAD:
                raise InvalidConfig(f"{owner}: {name!r} is not a client option here; use the argument {INSTEAD[name]}=")
            if name not in CONNECTION | accepted:
                known = ", ".join(sorted(CONNECTION | accepted))
                raise InvalidConfig(f"{owner}: unknown client option {name!r}; there are: {known}")

    def __repr__(self) -> str:
        return f"<{len(self._values)} client options, not shown>"

    def connection(self) -> dict[str, Any]:
        """For an AIOKafkaClient."""
        return {name: value for name, value in self._values.items() if name in CONNECTION}

    def all(self) -> dict[str, Any]:
        return dict(self._values)

    def get(self, name: str, default: Any) -> Any:
        return self._values.get(name, default)
