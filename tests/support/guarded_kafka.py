"""A Kafka that lets in only whom it knows: by TLS and a password, or by a certificate; and everybody only to what is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from services.runtime.embedded import jars, kafka
from services.runtime.embedded.java import java
from services.runtime.embedded.ports import HOST, choose
from services.runtime.embedded.process import Command, run, spawn, started
from tests.support.processes import until

USER, PASSWORD = "tollbook", "correct horse"
STRANGER = "nobody-special"
CERTIFIED = "tollbook-by-certificate"

_TOPIC, _GROUP, _CLUSTER = 2, 3, 4
_LITERAL, _PREFIXED = 3, 4
_ALL, _DESCRIBE, _ALLOW = 2, 8, 3


@dataclass(frozen=True)
class GuardedKafka:
    """Its listeners, and the files that a client needs. ``settings`` are the variables of one who is let in."""

    open: str
    password: str
    certificate: str
    ca: Path
    other_ca: Path
    ours: Path
    log: Path

    @property
    def settings(self) -> dict[str, str]:
        return {
            "TOLLBOOK_KAFKA": self.password,
            "TOLLBOOK_KAFKA_TLS": "1",
            "TOLLBOOK_KAFKA_CA": str(self.ca),
            "TOLLBOOK_KAFKA_SASL": "SCRAM-SHA-512",
            "TOLLBOOK_KAFKA_USER": USER,
            "TOLLBOOK_KAFKA_PASSWORD": PASSWORD,
        }

    async def allow(self, principal: str, prefix: str) -> None:
        """What the documentation says that a process needs: all of the topics and groups with its prefix."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.open)
        await admin.start()
        try:
            for kind, name, pattern, operation in (
                (_TOPIC, prefix, _PREFIXED, _ALL),
                (_GROUP, prefix, _PREFIXED, _ALL),
                (_CLUSTER, "kafka-cluster", _LITERAL, _DESCRIBE),
            ):
                request = CreateAclsRequest(kind, name, pattern, f"User:{principal}", "*", operation, _ALLOW)
                answer = await admin._send_to_controller(request)
                assert [each[0] for each in answer.creation_responses] == [0], answer
        finally:
            await admin.close()


class _Server(kafka.Kafka):
    port_names = (*kafka.PORTS, "password", "certificate")

    def _settings(self, ports: Mapping[str, int]) -> dict[str, object]:
        settings = super()._settings(ports)
        doors = f"PASSWORD://{HOST}:{ports['password']},CERTIFICATE://{HOST}:{ports['certificate']}"
        return settings | {
            "listeners": f"{settings['listeners']},{doors}",
            "advertised.listeners": f"{settings['advertised.listeners']},{doors}",
            "listener.security.protocol.map": f"{settings['listener.security.protocol.map']},PASSWORD:SASL_SSL,CERTIFICATE:SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._folder / "broker.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._folder / "ca.pem",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "listener.name.certificate.ssl.client.auth": "required",
            "listener.name.password.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.password.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
            ),
            "listener.name.password.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }


@asynccontextmanager
async def guarded_kafka(folder: Path) -> AsyncIterator[GuardedKafka]:
    """Started below a folder, with the users ``USER`` (who may do nothing yet) and ``STRANGER``."""
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other_ca.pem")
    _write(authority.issue_cert(HOST, common_name="broker"), folder / "broker.pem")
    _write(authority.issue_cert("client.invalid", common_name=CERTIFIED), folder / "ours.pem")
    server = _Server(folder, lambda _: None)
    ports = choose(server.port_names, {}, {})
    log = folder / "kafka.log"
    running = started(spawn(await asyncio.to_thread(server.prepare, ports), log), ports)
    try:

        async def ready() -> bool:
            assert running.alive(), log.read_text()
            return server.ready(ports, log)

        await until(ready, "the guarded Kafka is ready", within_s=kafka.START_WAIT_S)
        for user in (USER, STRANGER):
            await asyncio.to_thread(_add_user, folder, f"{HOST}:{ports['client']}", user)
        yield GuardedKafka(
            *(f"{HOST}:{ports[name]}" for name in ("client", "password", "certificate")),
            folder / "ca.pem",
            folder / "other_ca.pem",
            folder / "ours.pem",
            log,
        )
    finally:
        await asyncio.to_thread(running.stop, kafka.STOP, kafka.STOP_WAIT_S)


def _write(certificate: trustme.LeafCert, path: Path) -> None:
    """Key and chain in one file; Java reads a key in PKCS #8 only."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain)


def _add_user(folder: Path, address: str, user: str) -> None:
    program = [
        java(),
        "-cp",
        jars.classpath(lambda _: None),
        "kafka.admin.ConfigCommand",
        "--bootstrap-server",
        address,
    ]
    program += ["--alter", "--entity-type", "users", "--entity-name", user]
    program += ["--add-config", f"SCRAM-SHA-512=[password={PASSWORD}]"]
    run(Command(program, folder), folder / "users.log")
