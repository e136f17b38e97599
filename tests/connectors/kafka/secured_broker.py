"""A broker that wants a name and a password (SASL PLAIN)."""

from streamactors.testing import KafkaBroker

USER, PASSWORD = "alice", "correct-horse-battery"
PROPERTIES = """
listeners=SASL_PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="broker" password="broker" user_broker="broker" user_{user}="{password}";
"""


class SecuredBroker(KafkaBroker):
    """Lets in USER with PASSWORD; clients take `credentials()`."""

    def __init__(self) -> None:
        super().__init__(own=True)

    def _prepare(self) -> None:
        super()._prepare()
        assert self._folder is not None
        assert self._ports is not None
        port, controller = self._ports
        with (self._folder / "server.properties").open("a") as file:
            file.write(PROPERTIES.format(port=port, controller=controller, user=USER, password=PASSWORD))


def credentials(password: str = PASSWORD) -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": USER,
        "sasl_plain_password": password,
    }
