"""An object store for tests: a server that speaks S3, and buckets in it."""

from __future__ import annotations

import time
import urllib.request

from moto.server import ThreadedMotoServer

SECRETS = {"AWS_ACCESS_KEY_ID": "a-key-id", "AWS_SECRET_ACCESS_KEY": "a-very-secret-key"}


class ObjectStore:
    """S3 on loopback."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.environment = {**SECRETS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint}

    def bucket(self) -> str:
        """A new bucket's name."""
        name = f"bucket-{time.monotonic_ns()}"
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")):
            return name

    def close(self) -> None:
        """Stop it."""
        self._server.stop()
