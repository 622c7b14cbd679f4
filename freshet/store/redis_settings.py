"""How Redis is reached and written; free of the client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from freshet.errors import FreshetError
from freshet.store.credentials import check_files, read_secret, without_password

SENTINEL_PORT = 26379
KEYS_PER_CALL_MAX = 2_000
"""A script hands all that it writes to one command, and Lua's stack has room for some four thousand pairs."""
EXAMPLES = (
    "redis://HOST:PORT/0, redis+cluster://HOST:PORT,HOST:PORT and redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/0 "
    "are some (rediss for TLS); in a password write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
)


class RedisAddress(NamedTuple):
    """Where Redis is: a server (`url` says all), a cluster, or what sentinels know as `service`."""

    kind: Literal["server", "cluster", "sentinel"]
    url: str
    tls: bool
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True)
class RedisSettings:
    """How Redis or Valkey is reached and written."""

    url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    """`redis://` a server, `redis+cluster://` nodes of a cluster, `redis+sentinel://` sentinels; `rediss` for TLS."""
    username: str | None = None
    """The ACL user, where the URL names none."""
    password: str | None = field(default=None, repr=False)
    """Its password, or that of the server, where the URL has none."""
    password_file: str | None = None
    """A file whose first line is the password, in place of `password`."""
    sentinel_username: str | None = None
    """The ACL user of the sentinels themselves."""
    sentinel_password: str | None = field(default=None, repr=False)
    """The password of the sentinels themselves; they do not get that of the servers."""
    ssl_ca_file: str | None = None
    """The certificates (PEM) that a server's has to come from; None for those that the system trusts."""
    ssl_certificate_file: str | None = None
    """The client's certificate (PEM), where the server asks for one."""
    ssl_key_file: str | None = None
    """The key of the client's certificate (PEM)."""
    ssl_key_password: str | None = field(default=None, repr=False)
    """What the key is encrypted with."""
    ssl_check_hostname: bool = True
    """Whether a server's certificate has to name the host that it was reached by."""
    namespace: str = "freshet"
    """What every key begins with."""
    ttl_s: int | None = None
    """How long a user's value lives after its last write; None for ever."""
    guard_s: int = 86_400
    """How long after a user was forgotten an older write, of a worker that has been replaced, is still refused."""
    timeout_ms: int = 2_000
    """How long a connection attempt or an answer may take."""
    keys_per_call: int = 256
    """Values of one script call; a longer script would hold up readers."""
    attempts: int = 3
    """Tries of a call before the store counts as unavailable; the worker then waits and tries again."""
    retry_ms: float = 50.0
    """Pause before the second try, doubled before each further one."""

    @property
    def url_shown(self) -> str:
        """The URL without its password, for messages."""
        return without_password(self.url)

    def address(self) -> RedisAddress:
        """Where to connect. Raises FreshetError, without the password, for a URL that cannot be used."""
        try:
            found = _parsed(self.url)
        except ValueError as e:
            # Not `from e`: what urllib has to say may quote a piece of a password.
            why = f": {e.args[0]}" if isinstance(e, _Unusable) else ""
            raise FreshetError(f"Redis URL {self.url_shown!r} cannot be used{why}. {EXAMPLES}") from None
        if not found.tls and (self.ssl_ca_file or self.ssl_certificate_file):
            raise FreshetError(f"ssl_ca_file and ssl_certificate_file need a rediss URL, not {self.url_shown!r}")
        check_files(
            ssl_ca_file=self.ssl_ca_file, ssl_certificate_file=self.ssl_certificate_file, ssl_key_file=self.ssl_key_file
        )
        return found

    def secret(self) -> str | None:
        """The password of `password` or `password_file`. Raises FreshetError where that file cannot be read."""
        return read_secret(self.password, self.password_file, "FRESHET_REDIS_PASSWORD_FILE")

    def __post_init__(self) -> None:
        for name in ("guard_s", "timeout_ms", "keys_per_call", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1")
        if self.keys_per_call > KEYS_PER_CALL_MAX:
            raise ValueError(f"keys_per_call is {self.keys_per_call}: a script takes {KEYS_PER_CALL_MAX} at the most")
        if self.ttl_s is not None and self.ttl_s < 1:
            raise ValueError(f"ttl_s is {self.ttl_s}: it has to be at least 1, or absent for values that never expire")
        if self.retry_ms < 0:
            raise ValueError(f"retry_ms is {self.retry_ms}: it cannot be negative")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file are both given: leave one of them out")


class _Unusable(ValueError):
    """What is wrong with a URL, in words that quote nothing of it."""


def _parsed(url: str) -> RedisAddress:
    scheme, _, rest = url.partition("://")
    first, _, kind = scheme.partition("+")
    if first not in ("redis", "rediss") or kind not in ("", "cluster", "sentinel"):
        if scheme == "unix" and rest:
            return RedisAddress("server", url, False)
        raise _Unusable("it has no scheme that is known here")
    tls = first == "rediss"
    if not kind:
        urlsplit(url).port  # noqa: B018  raises ValueError
        return RedisAddress("server", url, tls)
    if "?" in rest or "#" in rest:
        raise _Unusable("behind a list of hosts it takes no options; there are settings for them")
    place, _, path = rest.partition("/")
    login, mark, hosts = place.rpartition("@")
    user, _, password = login.partition(":") if mark else ("", "", "")
    parts = [unquote(part) for part in path.split("/") if part]
    service = parts.pop(0) if kind == "sentinel" and parts else ""
    if kind == "sentinel" and not service:
        raise _Unusable("it has to name the service that the sentinels watch")
    if len(parts) > 1 or any(not part.isdigit() for part in parts):
        raise _Unusable("what follows the hosts is not the number of a database")
    db = int(parts[0]) if parts else 0
    if kind == "cluster" and db:
        raise _Unusable("a cluster has database 0 alone")
    return RedisAddress(
        "cluster" if kind == "cluster" else "sentinel", url, tls,
        tuple(_host(text, SENTINEL_PORT if kind == "sentinel" else 6379) for text in hosts.split(",")),
        service, db, unquote(user) or None, unquote(password) or None,
    )  # fmt: skip


def _host(text: str, port: int) -> tuple[str, int]:
    found = urlsplit(f"//{text}")
    if not found.hostname:
        raise _Unusable("one of its hosts has no name")
    return found.hostname, found.port or port
