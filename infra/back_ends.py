"""Database, artifact root, bind address and credentials of the servers: SQLite, files and loopback, or PostgreSQL, S3 and the network.

The choice is made once (`dora up --postgres … --artifacts … --host …`, or ``DORA_POSTGRES``, ``DORA_ARTIFACTS``, ``DORA_HOST``) and
recorded in ``services.json``, without passwords. No address holds one either: they are kept in two files of mode 0600 below ``home``,
``postgres-password`` and ``auth`` (``user:password``, for Prefect and MLflow), and passed to child processes in the variables that the
drivers read. So no place that shows an address (a log, an error, ``ps``, a manifest) can show a password.

Left out: a pgpass file (asyncpg 0.32 takes its escapes literally), and TLS: put a proxy before the servers, and give PostgreSQL
``PGSSLMODE``, which both drivers read.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import psutil

from dora_core.errors import ConfigError, ServiceError
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    import psycopg

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
NONE = "none"
"""Revokes a recorded choice: ``dora up --postgres none``."""
DATABASE_PASSWORD, AUTH = "postgres-password", "auth"
DATABASES = ("prefect", "mlflow")
CONTROL_SECRETS = frozenset(
    {"DORA_AUTH", "DORA_POSTGRES", "PGPASSWORD", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"}
)
"""Environment variables that Ray's jobs do not need."""
CONNECT_SECONDS = 5
SERVICE = "{service}"
"""Place of a service's name in DORA_PUBLIC_URL: prefect, mlflow or ray."""

_USER = re.compile(r"[A-Za-z0-9._-]+")
_PASSWORD = re.compile(r"[!-~]{12,128}")  # MLflow requires 12; an HTTP header carries printable ASCII
_CREDENTIALS = re.compile(r"//[^/?#\s]*@")


class BackEnds(StrictModel):
    """The recorded choice, without secrets.

    Attributes:
        postgres: ``postgresql://user@host:port/database``, of a server with the databases ``prefect`` and ``mlflow``; None = SQLite.
        artifacts: MLflow's artifact root, a URI such as ``s3://bucket/prefix``; None = a folder below home.
        host: address the servers listen on.
    """

    postgres: str | None = None
    artifacts: str | None = None
    host: str = LOOPBACK

    def database(self, driver: str, name: str) -> str:
        """Return the SQLAlchemy URL of one of :data:`DATABASES`."""
        assert self.postgres is not None
        return f"postgresql+{driver}://{urlsplit(self.postgres).netloc}/{name}"

    def difference(self, other: BackEnds) -> str:
        """Describe the changes from this choice to the other, ``"postgres: none → postgresql://…"``; empty if they are equal."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(f"{name}: {mine[name] or NONE} → {theirs[name] or NONE}" for name in mine if mine[name] != theirs[name])


def without_credentials(text: str) -> str:
    """Remove ``user:password@`` from every URL in ``text``."""
    return _CREDENTIALS.sub("//", text)


def refuse_credentials(url: str, name: str, remedy: str) -> str:
    """Return the URL, unless it holds a password: addresses are logged and recorded.

    Raises:
        ConfigError: it holds one; the error names the setting and the place for the password.
    """
    parts = urlsplit(url)
    if parts.password is not None or (parts.scheme.startswith("http") and parts.username is not None):
        raise ConfigError(f"{name} holds a password: {without_credentials(url)}", hint=f"give the address alone, and {remedy}")
    return url


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def split_postgres(url: str) -> tuple[str, str | None]:
    """Split ``postgresql://user:password@host:port/database`` into the URL without the password, and the password.

    Raises:
        ConfigError: it has another form.
    """
    parts = urlsplit(url)
    try:
        complete = parts.scheme == "postgresql" and parts.hostname and parts.username and not parts.query
        port = parts.port or 5432
    except ValueError:
        complete, port = False, 0
    if not complete:
        raise ConfigError(
            f"this is not an address of a PostgreSQL server: {without_credentials(url)!r}",
            hint="postgresql://user:password@host:5432, characters such as / and @ in the password percent-encoded; for TLS set PGSSLMODE",
        )
    host = parts.netloc.rpartition("@")[2].removesuffix(f":{parts.port}")
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    database = parts.path.strip("/") or "postgres"
    return f"postgresql://{user}@{host}:{port}/{database}", None if parts.password is None else unquote(parts.password)


def connect(server: str, environment: Mapping[str, str], database: str | None = None) -> psycopg.Connection[Any]:
    """Open a connection to one database (default: the one the address names).

    Args:
        environment: may hold PGPASSWORD; without it libpq's own rules apply.

    Raises:
        ServiceError: the server does not answer or refuses the login.
    """
    import psycopg

    address = server if database is None else f"{server.rpartition('/')[0]}/{database}"
    try:
        return psycopg.connect(address, connect_timeout=CONNECT_SECONDS, autocommit=True, password=environment.get("PGPASSWORD"))
    except psycopg.OperationalError as error:
        raise ServiceError(
            f"PostgreSQL at {address} refuses the connection: {str(error).strip().splitlines()[-1]}",
            hint="check that it runs, and user and password: DORA_POSTGRES=postgresql://user:password@host:5432",
        ) from error


def ensure_databases(server: str, environment: Mapping[str, str]) -> list[str]:
    """Create the missing ones of :data:`DATABASES`; returns their names.

    Raises:
        ServiceError: the server does not answer, or the user may not create them.
    """
    import psycopg

    with connect(server, environment) as connection:
        there = {row[0] for row in connection.execute("select datname from pg_database")}
        missing = [name for name in DATABASES if name not in there]
        try:
            for name in missing:
                connection.execute(f"create database {name}")
        except psycopg.errors.InsufficientPrivilege as error:
            user = unquote(str(urlsplit(server).username))
            raise ServiceError(
                f"{user} may not create the databases {' and '.join(missing)} at {server}",
                hint="let an administrator run: " + " ".join(f'create database {name} owner "{user}";' for name in missing),
                retryable=False,
            ) from error
        return missing


# ------------------------------------------------------------------------------------------------ addresses and access


def check_auth(text: str) -> tuple[str, str]:
    """Split ``user:password``.

    Raises:
        ConfigError: it has another form; the error does not show the text.
    """
    user, _, password = text.strip().partition(":")
    if not _USER.fullmatch(user) or not _PASSWORD.fullmatch(password):
        raise ConfigError(
            "DORA_AUTH is not user:password with a password of 12 to 128 printable ASCII characters without spaces",
            hint='for example: export DORA_AUTH="dora:$(openssl rand -hex 16)"',
        )
    return user, password


def check_host(host: str) -> str:
    """Return ``host`` if it is an IPv4 address of this machine, or a name of one.

    Raises:
        ConfigError: it is not; the hint lists this machine's addresses.
    """
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError):
        address = ""
    if address != EVERYWHERE and not (address and is_loopback(host)) and address not in _own_addresses():
        raise ConfigError(
            f"{host!r} is not an IPv4 address of this machine", hint=f"{EVERYWHERE} is all of them: {', '.join(_own_addresses())}"
        )
    return host


def check_public(url: str) -> str:
    """Return ``url`` if it is an address under which browsers may reach the servers.

    Raises:
        ConfigError: it is not; the hint has the two forms.
    """
    forms = f"https://{SERVICE}.example.org or https://host/{SERVICE} behind a proxy, or http://name of this machine, for its own ports"
    text = refuse_credentials(url.strip().rstrip("/"), "DORA_PUBLIC_URL", forms)
    parts = urlsplit(text.replace(SERVICE, "service"))
    try:
        is_address = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        names_one_server = SERVICE not in text and (parts.port is not None or parts.path)
    except ValueError:
        is_address, names_one_server = False, False
    if not is_address or names_one_server:
        raise ConfigError(f"DORA_PUBLIC_URL is not an address of three servers: {without_credentials(url)!r}", hint=forms)
    return text


def public_address(public: str, service: str, url: str) -> str:
    """Return the address under which browsers reach a server: ``public`` with the service's name, or with the port of ``url``."""
    if SERVICE in public:
        return public.replace(SERVICE, service)
    port = urlsplit(url).port
    return f"{public}:{port}" if port else public


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback


def address_of(host: str) -> str:
    """Return the address to which clients, also on other machines, connect."""
    if host != EVERYWHERE:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: the routing table gives the local address
            return str(probe.getsockname()[0])
        except OSError:
            return LOOPBACK


def names_of(host: str) -> list[str]:
    """List every name under which a browser may reach a server that listens on ``host``; others are refused (DNS rebinding)."""
    if is_loopback(host):
        return list(dict.fromkeys((host, LOOPBACK, "localhost")))
    if host != EVERYWHERE:
        return [host]
    return list(dict.fromkeys(("localhost", *_own_addresses(), socket.gethostname(), socket.getfqdn())))


def _own_addresses() -> list[str]:
    return [a.address for group in psutil.net_if_addrs().values() for a in group if a.family == socket.AF_INET]


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
