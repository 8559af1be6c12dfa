"""Journal to log on a real store: over TLS, through kills of the store, proved at the end."""

from __future__ import annotations

from pathlib import Path

from demo.servers import Weed
from mirror.header import public_hex
from mirror.io.s3 import S3Settings, S3Store, together
from mirror.verify import verify_store
from tests.gateway.boxes import KEY, LAYOUT, Box
from tests.live import certificates


def test_a_journal_reaches_seaweedfs_over_tls_and_survives_its_death(tmp_path: Path):
    made = certificates.make(tmp_path / "tls")
    box = Box(tmp_path / "box")
    with Weed(tmp_path / "weed", certificate=(made.certificate, made.key)) as server:
        settings = S3Settings(
            bucket=server.bucket, endpoint=server.tls_endpoint, access_key=server.access_key,
            secret_key=server.secret_key, ca_file=str(made.ca), connect_timeout_s=1.0, read_timeout_s=5.0,
        )  # fmt: skip
        store = S3Store.open(settings)
        box.receive(15)
        status = box.run(10, stores=store.dialects(), together=together)
        assert (status.state, status.error) == ("leading", None)
        server.kill()
        box.receive(15)
        assert box.run(5).error is not None
        server.start()
        status = box.run(120)
        assert status.error is None
        report = verify_store(store, LAYOUT, keys={"a": public_hex(KEY)})
        assert report.verified, report.findings
        assert report.rows == 30 * 6
        [stream] = report.streams
        assert (stream.start, stream.complete_up_to, stream.holes) == (10, 310, [])
        store.close()
    box.journal.close()
