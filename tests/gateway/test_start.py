"""What a start waits for: the devices first, the libraries of the bucket while they are already mirrored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.config import parse
from gateway.io.runtime import Gateway


def test_nothing_that_only_the_bucket_needs_is_imported_before_the_devices_are_mirrored() -> None:
    program = "import sys, gateway.io.runtime; print(*({'pyarrow', 'boto3', 'botocore'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_bucket_counts_as_starting_until_its_libraries_are_there(tmp_path: Path) -> None:
    text = f'''
group = {{ name = "g" }}
replica = {{ name = "a", data_dir = "{tmp_path}" }}
sync = {{ bucket = "s3://b/plant" }}
[[source]]
name = "plc"
endpoint = "opc.tcp://127.0.0.1:1"
security = "none"
device = [{{ name = "press7", browse = ["ns=1;s=A/**"] }}]
'''
    gateway = Gateway(parse(text))
    sync = gateway.survey.figures().sync
    gateway.journal.close()
    assert sync is not None and sync.state == "starting"
