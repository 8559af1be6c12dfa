"""Real stores for the conformance suite, each on free loopback ports and in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from moto.server import ThreadedMotoServer

from demo.servers import Server, Weed, program
from mirror.io.s3 import S3Settings
from tests.live import certificates

BUCKET = "mirror-test"


@contextmanager
def weed(folder: Path) -> Iterator[tuple[S3Settings, S3Settings]]:
    """Run SeaweedFS; return how to reach it over HTTP, and over HTTPS under an authority of its own."""
    made = certificates.make(folder)
    with Weed(folder, bucket=BUCKET, certificate=(made.certificate, made.key)) as server:
        plain = S3Settings(
            bucket=BUCKET, endpoint=server.endpoint, access_key=server.access_key, secret_key=server.secret_key
        )
        yield plain, msgspec.structs.replace(plain, endpoint=server.tls_endpoint, ca_file=str(made.ca))


class LocalBucket(Server):
    """A store that ignores If-Match."""

    @property
    def settings(self) -> S3Settings:
        return S3Settings(bucket=BUCKET, endpoint=f"http://127.0.0.1:{self.port}", access_key="a", secret_key="b")

    def command(self) -> tuple[list[str | Path], dict[str, str]]:
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        return [program("localbucket"), "--port", str(self.port), data], {}

    def is_ready(self) -> bool:
        client = _client(self.settings)
        try:
            client.create_bucket(Bucket=BUCKET)
        except ClientError as error:
            return "BucketAlready" in str(error)
        except BotoCoreError:
            return False
        finally:
            client.close()
        return True


@contextmanager
def localbucket(folder: Path) -> Iterator[S3Settings]:
    """Run a store that ignores If-Match."""
    with LocalBucket(folder) as server:
        yield server.settings


@contextmanager
def moto() -> Iterator[S3Settings]:
    """Run moto's server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = S3Settings(bucket=BUCKET, endpoint=f"http://{host}:{port}", access_key="a", secret_key="b")
        client = _client(settings)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield settings
    finally:
        server.stop()


def _client(settings: S3Settings):
    return boto3.client(
        "s3", endpoint_url=settings.endpoint, region_name=settings.region, aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key, config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )  # fmt: skip
