"""What a refused certificate of a server means for whoever set up the connection to it.

The texts are OpenSSL's; what it says in a dozen ways comes to four things that a person can do.
"""

from __future__ import annotations

FAILED = "CERTIFICATE_VERIFY_FAILED"


def hint(text: str, *, ca_setting: str, address_setting: str, whose: str) -> str:
    """Return what to do about a failed TLS handshake.

    Args:
        text: What the library said.
        ca_setting: Names the file of authorities, such as `sync.ca_file`.
        address_setting: Names the address, such as `sync.endpoint`.
        whose: `store` or `broker`.

    Returns:
        Empty where the text says nothing of a certificate of the other side.
    """
    said = text.lower()
    if "mismatch" in said or "doesn't match" in said:
        return f"set {address_setting} to a name that stands in the certificate of the {whose}"
    if "expired" in said:
        return f"give the {whose} a new certificate; if it is still good, set this box's clock"
    if "not yet valid" in said:
        return f"set this box's clock, or that of the {whose}"
    if FAILED.lower() in said:
        return f"set {ca_setting} to the certificate authority of the {whose}"
    return ""
