"""Where a server of ours listens, and who may ask it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from lightrft.config.addresses import is_loopback, secret


@dataclass(frozen=True)
class Address:
    """Where a server listens, and who may ask."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: all of this machine's, which needs a key, and a certificate or plain-http."""
    port: int = 8100
    """Port to listen at; 0: any that is free."""
    key: str = ""
    """Environment variable with the key that clients must send."""
    certificate: str = ""
    """PEM file with the server's certificate, for https."""
    private_key: str = ""
    """PEM file with its private key, if it is not in the same file."""
    plain_http: bool = False
    """Answer other machines without encryption."""

    def checked_key(self) -> str:
        """The key; empty without one. ValueError for an address that others reach without a key or unencrypted, a file that is not there, or
        a port that is none."""
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port {self.port}: must be from 0 to 65535.")
        if self.key and not os.environ.get(self.key):
            raise ValueError(
                f"--key {self.key}: there is no such environment variable, or it is empty. Set it to a long random word."
            )
        for flag, file in (("--certificate", self.certificate), ("--private-key", self.private_key)):
            if file and not Path(file).is_file():
                raise ValueError(f"{flag} {file}: there is no such file.")
        if self.private_key and not self.certificate:
            raise ValueError(f"--private-key {self.private_key} has no effect without --certificate FILE.")
        if not is_loopback(self.host) and not self.key:
            raise ValueError(
                f"--host {self.host} without a key: whoever reaches this machine could use the rewards. Put a key into an environment variable "
                "and name it: --key REWARD_KEY. Or leave --host out, to serve this machine alone."
            )
        if not is_loopback(self.host) and not self.certificate and not self.plain_http:
            raise ValueError(
                f"--host {self.host} without a certificate: responses and the key could be read on the way. Give --certificate FILE, or "
                "--plain-http where the network is trusted."
            )
        return secret("--key", self.key) if self.key else ""

    def context(self) -> ssl.SSLContext | None:
        """What encrypts connections; None without a certificate. ValueError for files that hold none, or a key that asks for a password."""
        if not self.certificate:
            return None
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:  # with a password, though an empty one, since without any the terminal would be asked for it
            found.load_cert_chain(self.certificate, self.private_key or None, password="")
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"--certificate {self.certificate}{f' --private-key {self.private_key}' if self.private_key else ''}: no certificate with its private "
                f"key, unencrypted, in PEM ({error})."
            ) from error
        return found
