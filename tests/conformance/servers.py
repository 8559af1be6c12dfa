"""Real stores for the conformance suite, each on free loopback ports and in a folder of its own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mirror.io.s3 import S3Settings

BUCKET = "mirror-test"
START_S = 30.0


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports."""
    for base in range(21000 + os.getpid() % 400 * 20, 31000, count):
        with ExitStack() as held:
            try:
                for port in range(base, base + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError("no free ports")


def program(name: str) -> str:
    """Return the path of a program in this environment, or skip the test."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def process(command: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends."""
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env}, start_new_session=True)
    try:
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def await_bucket(settings: S3Settings, server: subprocess.Popen[bytes], log: Path) -> None:
    """Create the bucket and write one object, repeating until the server is up."""
    client = boto3.client(
        "s3", endpoint_url=settings.endpoint, region_name=settings.region, aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key, verify=settings.ca_file or None,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=2),
    )  # fmt: skip
    end = time.monotonic() + START_S
    while True:
        try:
            client.create_bucket(Bucket=settings.bucket)
            client.put_object(Bucket=settings.bucket, Key="ready", Body=b"")
            client.delete_object(Bucket=settings.bucket, Key="ready")
            return
        except (ClientError, BotoCoreError) as error:
            if "BucketAlready" in str(error):
                return
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the store did not start: {error}\n{log.read_text()[-2000:]}") from error
            time.sleep(0.1)


@contextmanager
def weed(folder: Path, *, tls: bool = False) -> Iterator[S3Settings]:
    """Run SeaweedFS; with `tls`, reached over HTTPS under an authority of its own."""
    binary = program("weed")
    folder.mkdir(parents=True, exist_ok=True)
    base, ip = free_ports(11), "127.0.0.1"
    ports = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "filer.port", "filer.port.grpc",
             "volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc"]  # fmt: skip
    command = [
        binary, "mini", f"-dir={folder}", f"-ip={ip}", f"-ip.bind={ip}", "-master.telemetry=false", "-admin.ui=false",
        "-webdav=false", *(f"-{name}={base + i}" for i, name in enumerate(ports)),
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={folder}/s3.sock", "-s3.autoCreateBucket=false",
    ]  # fmt: skip
    endpoint, ca_file = f"http://{ip}:{base}", ""
    if tls:
        cert, key = certificate(folder)
        command += [f"-s3.port.https={base + 10}", f"-s3.cert.file={cert}", f"-s3.key.file={key}"]
        endpoint, ca_file = f"https://{ip}:{base + 10}", str(cert)
    settings = S3Settings(
        bucket=BUCKET, endpoint=endpoint, access_key="admin", secret_key="secretsecret", ca_file=ca_file
    )
    log = folder / "weed.log"
    with process(command, log, AWS_ACCESS_KEY_ID="admin", AWS_SECRET_ACCESS_KEY="secretsecret") as server:
        await_bucket(settings, server, log)
        yield settings


@contextmanager
def localbucket(folder: Path) -> Iterator[S3Settings]:
    """Run a store that ignores If-Match."""
    binary = program("localbucket")
    data = folder / "data"
    data.mkdir(parents=True)
    port = free_ports(1)
    settings = S3Settings(bucket=BUCKET, endpoint=f"http://127.0.0.1:{port}", access_key="a", secret_key="b")
    log = folder / "localbucket.log"
    with process([binary, "--port", str(port), str(data)], log) as server:
        await_bucket(settings, server, log)
        yield settings


@contextmanager
def moto() -> Iterator[S3Settings]:
    """Run moto's server in this process."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = S3Settings(bucket=BUCKET, endpoint=f"http://{host}:{port}", access_key="a", secret_key="b")
        boto3.client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        ).create_bucket(Bucket=BUCKET)
        yield settings
    finally:
        server.stop()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for loopback and its key; the certificate is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgemirror test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return cert_file, key_file
