"""Certificates of a test's own, made by the openssl program: a CA, a server and a client of it, and another CA."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

KEY_PASSWORD = "key-pass-7731"


class Certificates(NamedTuple):
    """Paths of PEM files."""

    ca: Path
    other_ca: Path
    server: Path
    server_key: Path
    server_both: Path
    client: Path
    client_key: Path
    client_locked_key: Path
    """The client's key under KEY_PASSWORD."""


def make_certificates(folder: Path) -> Certificates | None:
    """All of them in a folder; None without the program."""
    if shutil.which("openssl") is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ca}", "-addext",
                "basicConstraints=critical,CA:TRUE", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")  # fmt: skip
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "san", "-out", f"{name}.pem")  # fmt: skip
    openssl("pkcs8", "-topk8", "-in", "client.key", "-passout", f"pass:{KEY_PASSWORD}", "-out", "client.locked.key")
    both = folder / "server.both.pem"
    both.write_text((folder / "server.key").read_text() + (folder / "server.pem").read_text())
    return Certificates(
        folder / "ca.pem", folder / "other.pem", folder / "server.pem", folder / "server.key", both,
        folder / "client.pem", folder / "client.key", folder / "client.locked.key",
    )  # fmt: skip
