"""How every client gets into Kafka: the addresses, TLS, and who it is. Source: the `TOLLBOOK_KAFKA...` variables."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError
from faststream.kafka.security import parse_security
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime.settings import Settings

ASKED_MS_MAX = 5000
_LOGINS = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


def client_options(settings: Settings) -> dict[str, Any]:
    """What each client of aiokafka is made with, whatever else it is given."""
    return {"bootstrap_servers": settings.kafka_bootstrap, **parse_security(security(settings))}


def security(settings: Settings) -> BaseSecurity:
    """TLS and login as FastStream takes them. `InvalidInput` names the variable that does not fit the others, or its file."""
    context = _tls(settings)
    name, password = settings.kafka_user, settings.kafka_password
    if settings.kafka_sasl is None:
        if name is not None or password is not None:
            raise _wrong("SASL", f"is not set, and there is a login; set it to one of {', '.join(_LOGINS)}")
        return BaseSecurity(ssl_context=context)
    if name is None or password is None:
        missing = "USER" if name is None else "PASSWORD"
        raise _wrong(missing, f"is not set; a login by {settings.kafka_sasl} needs it")
    return _LOGINS[settings.kafka_sasl](name, password.get_secret_value(), ssl_context=context)


async def not_let_in(settings: Settings) -> Unavailable:
    """What to tell people when a client could not start: how we came, what the first broker says to it, what to check.

    The client keeps the cause to itself, so the broker is asked once more.
    """
    how = (" by TLS" if settings.kafka_tls else "") + (f" as {settings.kafka_user}" if settings.kafka_sasl else "")
    options = client_options(settings)
    host, port, _ = collect_hosts(options.pop("bootstrap_servers"), randomize=False)[0]
    cause = ""
    try:
        (await create_conn(host, port, request_timeout_ms=ASKED_MS_MAX, **options)).close()
    except (OSError, KafkaError, TimeoutError) as error:
        cause = f" ({error})" if str(error) else ""
    return Unavailable(
        f"no Kafka broker answers at {settings.kafka_bootstrap}{how}{cause}; check TOLLBOOK_KAFKA, and how it lets us in:"
        " TOLLBOOK_KAFKA_TLS, TOLLBOOK_KAFKA_SASL",
        field="kafka",
    )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    files = {"CA": settings.kafka_ca, "CERTIFICATE": settings.kafka_certificate, "KEY": settings.kafka_key}
    given = {name: path for name, path in files.items() if path is not None}
    if not settings.kafka_tls:
        if given:
            raise _wrong("TLS", f"is not set, and TOLLBOOK_KAFKA_{next(iter(given))} is; set it to 1")
        return None
    for name, path in given.items():
        if not path.is_file():
            raise _wrong(name, f"there is no file {path}")
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca)
    except (ssl.SSLError, OSError) as error:
        raise _wrong("CA", f"{settings.kafka_ca} holds no certificates in PEM ({error})") from error
    if settings.kafka_certificate is not None:
        _present(context, settings.kafka_certificate, settings.kafka_key)
    elif settings.kafka_key is not None:
        raise _wrong("CERTIFICATE", "is not set, and its key is")
    return context


def _present(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show a certificate of ours, whose key may stand in the same file. One with a password is refused: nobody is there to type it."""
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        raise _wrong(
            "CERTIFICATE",
            f"{certificate} and its key in {key or 'the same file'} are no pair in PEM without a password ({error})",
        ) from error


def _no_password() -> str:
    return ""


def _wrong(variable: str, message: str) -> InvalidInput:
    return InvalidInput(message, field=f"TOLLBOOK_KAFKA_{variable}")
