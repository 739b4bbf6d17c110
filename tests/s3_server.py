"""An S3-compatible server on loopback, in a thread of this process: moto, which also supports multipart uploads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "dora-bucket"


@dataclass(frozen=True)
class S3Server:
    """A running server. ``environment``: the variables of every S3 client, pyarrow's, boto3's and so MLflow's and Ray's."""

    environment: dict[str, str]

    def client(self) -> Any:
        import boto3

        e = self.environment
        return boto3.client(
            "s3",
            endpoint_url=e["AWS_ENDPOINT_URL"],
            region_name=e["AWS_DEFAULT_REGION"],
            aws_access_key_id=e["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=e["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return the objects' content by key."""
        client, found = self.client(), dict[str, bytes]()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for entry in page.get("Contents", []):
                found[entry["Key"]] = client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        return found


@contextmanager
def s3_server(secret: str = "s3-canary-9be0aa71") -> Iterator[S3Server]:
    """Run a server with one empty bucket, :data:`BUCKET`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # otherwise it logs a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        found = S3Server(
            {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "dora-tests",
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        )
        found.client().create_bucket(Bucket=BUCKET)
        yield found
    finally:
        server.stop()
