"""Where the servers are and how a process behaves: the `TOLLBOOK_...` variables.

Every field is a variable of the same name in capitals with the prefix, e.g. `TOLLBOOK_KAFKA=broker:9092`. What is not
set is taken from the embedded servers that run below `TOLLBOOK_DATA`, so that on one machine nothing has to be set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime import embedded

ROOMS = ("usage", "balance", "groups", "invoices", "payments", "webhooks")
"""The rooms that own a schema and a login role of their own."""

GATEWAY = "gateway"
"""The process that speaks for the rooms over HTTP; it owns nothing."""

PROCESSES = (*ROOMS, GATEWAY)
"""All that runs."""

DATABASE = "tollbook"
"""The name of the database where `TOLLBOOK_POSTGRES` names none."""

_PREFIX = "TOLLBOOK_"


def room_role(room: str) -> str:
    """The login role of a room.

    >>> room_role("usage")
    'tollbook_usage'
    """
    if room not in ROOMS:
        raise InvalidInput(f"there is no room {room!r}; the rooms are {', '.join(ROOMS)}", field="room")
    return f"tollbook_{room}"


class Settings(BaseSettings):
    """The settings of one process. Make it by `load`, which explains a wrong variable."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    data: Path = Field(default=Path(".tollbook"), description="folder of the embedded servers and their data")
    kafka: str | None = Field(default=None, description="bootstrap addresses of Kafka: host:port[,host:port...]")
    kafka_tls: bool = Field(default=False, description="whether the brokers are spoken to by TLS")
    kafka_ca: Path | None = Field(
        default=None, description="file with the certificates that vouch for the brokers, in PEM; unset: the system's"
    )
    kafka_certificate: Path | None = Field(
        default=None, description="file with a certificate of ours that the brokers know us by, in PEM"
    )
    kafka_key: Path | None = Field(default=None, description="file with its key, where it is not in the same file")
    kafka_sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="way of logging in with a user and a password; unset: none"
    )
    kafka_user: str | None = Field(default=None, description="user of that login")
    kafka_password: SecretStr | None = Field(default=None, description="password of that login")
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        description="put before every topic name, so that several installations can share one Kafka",
    )
    postgres: str | None = Field(
        default=None, description="postgresql://host[:port][/database], without user and password"
    )
    owner_user: str = Field(default="tollbook_owner", description="role that owns the database and migrates it")
    owner_password: SecretStr | None = Field(default=None, description="password of the owner role")
    room_password: SecretStr | None = Field(default=None, description="password of the rooms' roles tollbook_<room>")
    valkey: str | None = Field(default=None, description="redis://host:port/number of Valkey or Redis")

    metadata_max_age_ms: int = Field(
        default=1000, ge=100, le=300_000, description="how soon a new topic is noticed; raise it with many consumers"
    )
    tick_ms: int = Field(default=1000, ge=10, le=60_000, description="how often positions, timers and health move on")
    batch_max_records: int = Field(
        default=20_000, ge=1, le=50_000, description="records in one transaction at most; an input may want fewer"
    )
    session_ms: int = Field(
        default=10_000,
        ge=1000,
        le=300_000,
        description="how long a silent copy keeps its partitions before others take over",
    )
    batch_wait_ms: int = Field(default=100, ge=1, le=10_000, description="wait for more records after an empty poll")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="what is logged")
    health_port: int | None = Field(
        default=None, ge=0, le=65_535, description="port of the health page; unset: none, 0: any free one"
    )

    gateway_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="address that the gateway listens on; this machine alone by default",
    )
    gateway_port: int = Field(default=8090, ge=0, le=65_535, description="port of the gateway; 0: any free one")
    gateway_answer_ms: int = Field(
        default=3000,
        ge=100,
        le=60_000,
        description="longest that a request to the gateway waits for the database; then it is told to ask again",
    )
    webhooks_allow: str = Field(
        default="",
        max_length=10_000,
        description="networks with commas that webhooks may call although they are not public: receivers on premises",
    )
    webhooks_keys: SecretStr | None = Field(
        default=None,
        description="keys with commas, the newest first, that secrets of webhooks are encrypted by; unset: they are not",
    )
    webhooks_http: bool = Field(
        default=False, description="permission for webhooks to plain http: URLs, for tests and demonstrations"
    )

    sandbox: bool = Field(
        default=True,
        description="permission to pay by the built-in sandbox; switch it off where money is real (a live key of Stripe does)",
    )
    stripe_key: SecretStr | None = Field(
        default=None, min_length=1, description="secret key of Stripe; without one there is no processor stripe"
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="secret of the endpoint that Stripe's webhooks are signed for; unset: none",
    )
    stripe_webhook_host: str = Field(
        default="127.0.0.1", min_length=1, description="address that payments takes Stripe's webhooks on"
    )
    stripe_webhook_port: int = Field(default=8091, ge=0, le=65_535, description="port of Stripe's webhooks; 0: any")
    stripe_api: str | None = Field(
        default=None, description="address of Stripe's API; another one than Stripe's for tests"
    )

    @field_validator("postgres")
    @classmethod
    def _address_without_user(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError("must look like postgresql://host:5432/tollbook") from None
        if url.get_backend_name() != "postgresql" or not url.host:
            raise ValueError("must look like postgresql://host:5432/tollbook")
        if url.username or url.password:
            raise ValueError(
                "must not hold a user or a password: each room logs in with a role of its own; "
                "give them by TOLLBOOK_OWNER_USER, TOLLBOOK_OWNER_PASSWORD and TOLLBOOK_ROOM_PASSWORD"
            )
        return value

    @property
    def kafka_bootstrap(self) -> str:
        """The bootstrap address of Kafka."""
        return self.kafka or self._embedded_for("KAFKA").kafka

    @property
    def valkey_url(self) -> str:
        """The URL of Valkey. Its absence must never stop money: callers go on without it when it does not answer."""
        return self.valkey or self._embedded_for("VALKEY").valkey

    def room_database_url(self, room: str) -> str:
        """The SQLAlchemy URL (asyncpg) by which a room logs in. It holds the password: never log it."""
        return self._url(room_role(room), self.room_password_text())

    def owner_database_url(self) -> str:
        """The SQLAlchemy URL (asyncpg) of the owner role, for migrations only. It holds the password: never log it."""
        return self._url(self.owner_user, self._password("OWNER_PASSWORD", self.owner_password))

    def room_password_text(self) -> str:
        """The password of the rooms' roles."""
        return self._password("ROOM_PASSWORD", self.room_password)

    def _url(self, user: str, password: str) -> str:
        if self.postgres is None:
            servers = self._embedded_for("POSTGRES")
            server = URL.create("postgresql", host=servers.postgres_host, port=servers.postgres_port)
        else:
            server = make_url(self.postgres)
        url = server.set(
            drivername="postgresql+asyncpg", username=user, password=password, database=server.database or DATABASE
        )
        return url.render_as_string(hide_password=False)

    def _password(self, variable: str, given: SecretStr | None) -> str:
        if given is not None:
            return given.get_secret_value()
        if self.postgres is not None:
            raise InvalidInput(
                f"is not set; a server named by {_PREFIX}POSTGRES needs it",
                field=f"{_PREFIX}{variable}",
                code="not_set",
            )
        servers = self._embedded_for("POSTGRES")
        return servers.owner_password if variable == "OWNER_PASSWORD" else servers.room_password

    def _embedded_for(self, variable: str) -> embedded.Servers:
        try:
            return embedded.running(self.data)
        except Unavailable:
            raise Unavailable(
                f"is not set, and no embedded server runs below {self.data}: "
                f"start them by `tollbook up`, or set {_PREFIX}{variable} to a server of yours",
                field=f"{_PREFIX}{variable}",
            ) from None


def load() -> Settings:
    """The settings from the environment; `InvalidInput` names the variable that is wrong and what it may hold."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        meaning = Settings.model_fields[name].description
        raise InvalidInput(
            f"{first['msg'].removeprefix('Value error, ')} (it is the {meaning})", field=f"{_PREFIX}{name.upper()}"
        ) from None
