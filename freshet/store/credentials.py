"""Passwords: read from files, and kept out of what is shown."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from freshet.errors import FreshetError

logger = logging.getLogger("freshet")

SHOWN_OPTIONS = {"db", "username"}
"""Options of a URL whose values are shown; any other may be, or hold, a secret."""


_HOST = re.compile(r"([\w.-]+|\[[\w:.%]+\])(:\d+)?$")


def without_password(url: str) -> str:
    """A URL as it may be shown, also where its password was not written as a URL wants it.

    A password is taken to reach up to the last @, so that one with an unescaped / or # is hidden as well.
    """
    head, mark, query = url.partition("?")
    if "@" in query and "@" not in head and not all(map(_HOST.match, _taken_apart(head)[2].split("/")[0].split(","))):
        head, mark, query = url, "", ""  # what comes before the ? is no host: it is part of a password
    elif "@" in query and "@" in head and "=" not in query.partition("@")[0]:
        head, mark, query = url, "", ""
    scheme, login, place = _taken_apart(head)
    if login is not None:
        user, colon, _ = login.partition(":")
        place = f"{user}{colon and ':***'}@{place}"
    return scheme + place + mark + "&".join(_option(part) for part in query.split("&"))


def has_password(url: str) -> bool:
    """Whether somebody who reads this URL learns a password."""
    return "***" in without_password(url)


def warn_of_password(url: str, option: str) -> None:
    """Log a warning where a URL on the command line, which everybody on the machine can read, has a password."""
    if has_password(url):
        logger.warning(
            "%s has a password, and every user of this machine can read a command line: put the URL into "
            "FRESHET_REDIS_URL, or the password into FRESHET_REDIS_PASSWORD or FRESHET_REDIS_PASSWORD_FILE",
            option,
        )


def read_secret(secret: str | None, path: str | None, setting: str) -> str | None:
    """A secret, or the first line of the file that holds it. Raises FreshetError naming the setting and the file."""
    if path is None:
        return secret
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise FreshetError(f"{setting}: {path} cannot be read ({why})") from None
    if not lines or not lines[0]:
        raise FreshetError(f"{setting}: {path} is empty: put the password into its first line")
    return lines[0]


def check_files(**paths: str | None) -> None:
    """Raises FreshetError for a setting that names a file that is not there."""
    for setting, path in paths.items():
        if path is not None and not Path(path).is_file():
            raise FreshetError(f"{setting}: there is no file {path}")


def _taken_apart(head: str) -> tuple[str, str | None, str]:
    """Scheme with its ://, login without the @ (None where there is none), and the rest."""
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", head)
    scheme = match[0] if match else ""
    login, mark, place = head[len(scheme) :].rpartition("@")
    return scheme, login if mark else None, place


def _option(part: str) -> str:
    name, mark, value = part.partition("=")
    if not part or name in SHOWN_OPTIONS or (mark and (value.isdigit() or value.lower() in ("true", "false"))):
        if "password" not in name:
            return part
    return f"{name}=***" if mark else "***"
