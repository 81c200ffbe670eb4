"""Certificates of the TLS tests, and what a port shows to a real client."""

import contextlib
import os
import re
import subprocess

from thawtest import equal, wait_for


def make(cert, key, name="IP:127.0.0.1"):
    """A self-signed one and its key. Each file is renamed into its place, as those that renew certificates do it."""
    new = {file: file.with_name(file.name + ".new") for file in (cert, key)}
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=thaw",
                    "-addext", f"subjectAltName={name}", "-keyout", new[key], "-out", new[cert]], check=True, capture_output=True, timeout=60)  # fmt: skip
    for file in (cert, key):
        os.rename(new[file], file)


def serial(cert):
    return subprocess.run(["openssl", "x509", "-noout", "-serial", "-in", cert], check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def presented(port, folder):
    """The serial number of the certificate that openssl's client is shown."""
    shown = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}"], input="", capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", shown, re.DOTALL)
    if not found:
        return f"none: {shown[:300]}"
    (folder / "shown.pem").write_text(found[0], encoding="utf-8")
    return serial(folder / "shown.pem")


def renewal(daemon, port, cert, key, who, name, still_served):
    """A new pair is used without a restart; one that cannot be used is told of, and changes nothing."""

    def complaints():
        return [line for line in daemon.log_lines() if f"{who} keeps its certificate" in line]

    first = presented(port, daemon.data)
    equal(first, serial(cert), "the certificate at first")
    make(cert, key, name)
    wait_for(lambda: presented(port, daemon.data) == serial(cert) != first, f"{who} shows its new certificate")
    still_served()
    second, good = presented(port, daemon.data), (cert.read_bytes(), key.read_bytes())
    told = len(complaints())  # the new certificate beside the key before may have been one
    key.write_text("no key\n", encoding="utf-8")
    wait_for(lambda: len(complaints()) > told, "the key that cannot be used is told of")
    equal(presented(port, daemon.data), second, "the certificate beside a key that cannot be used")
    still_served()
    with contextlib.suppress(FileNotFoundError):
        (daemon.data / "shown.pem").unlink()
    cert.write_bytes(good[0])
    key.write_bytes(good[1])
