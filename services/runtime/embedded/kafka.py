"""Apache Kafka: one node that is broker and controller (KRaft), no Docker and no installed Java."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from services.runtime.embedded import jars
from services.runtime.embedded.java import java
from services.runtime.embedded.ports import HOST, is_open
from services.runtime.embedded.process import Command, run, says

NAME = "kafka"
PORTS = ("client", "controller")
STOP = signal.SIGTERM
STOP_WAIT_S = 20.0
START_WAIT_S = 60.0

# A cluster of one needs no id that is unique in the world; a fixed one lets a data folder be formatted again.
_CLUSTER = "VG9sbGJvb2tUb2xsYm9vaw"
_STARTED = "Kafka Server started"
_NODE = 1

_LOGGING = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders><Console name="console"><PatternLayout pattern="%d{ISO8601} %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""


class Kafka:
    """How one Kafka node is prepared, started and recognised as ready below its folder."""

    name: str = NAME
    port_names: tuple[str, ...] = PORTS
    stop_signal: signal.Signals = STOP
    stop_wait_s = STOP_WAIT_S
    start_wait_s = START_WAIT_S

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._tell = tell

    def prepare(self, ports: Mapping[str, int]) -> Command:
        """Writes the settings, formats the storage of a new folder, and says what to run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "log4j2.xml").write_text(_LOGGING)
        settings = self._folder / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in self._settings(ports).items()))
        program = [
            java(),
            "-Xms128m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}",
            "-cp",
            jars.classpath(self._tell),
        ]
        if not (self._folder / "data" / "meta.properties").exists():
            format_it = [*program, "kafka.tools.StorageTool", "format", "--ignore-formatted"]
            format_it += ["--cluster-id", _CLUSTER, "--config", str(settings)]
            run(Command(format_it, self._folder), self._folder / "format.log")
        return Command([*program, "kafka.Kafka", str(settings)], self._folder)

    def ready(self, ports: Mapping[str, int], log: Path) -> bool:
        """Whether clients can work: the port opens a moment before the broker is let into the cluster."""
        return says(log, _STARTED) and is_open(ports["client"])

    def _settings(self, ports: Mapping[str, int]) -> dict[str, object]:
        client, controller = f"{HOST}:{ports['client']}", f"{HOST}:{ports['controller']}"
        return {
            "process.roles": "broker,controller",
            "node.id": _NODE,
            "controller.quorum.voters": f"{_NODE}@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"CLIENT://{client},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENT://{client}",
            "inter.broker.listener.name": "CLIENT",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self._folder / "data",
            "num.partitions": 6,
            "auto.create.topics.enable": "false",
            "unclean.leader.election.enable": "false",
            # One node cannot replicate; the few partitions keep start and stop fast.
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # A consumer that joins, and one that was killed, must not hold up the others for seconds.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # The default buffer of the cleaner is a quarter of the heap.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "num.network.threads": 2,
            "num.io.threads": 4,
        }
