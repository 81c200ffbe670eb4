"""Builds the wheel (PEP 517, PEP 427) with the standard library, so that it can be built where there is no network.

The metadata is that of pyproject.toml, whose lines are simple enough to read without a TOML parser, which Python has since 3.11 only.
"""

import base64
import hashlib
import os
import re
import tarfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
DATE = (1980, 1, 1, 0, 0, 0)  # the same input is the same wheel


def _project():
    with open(os.path.join(HERE, "pyproject.toml"), encoding="utf-8") as file:
        text = file.read().partition("[project]")[2]
    return dict(re.findall(r'^([a-z-]+) = "(.*)"$', text, re.MULTILINE))


def _metadata(project):
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    return (f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\nSummary: {project['description']}\n"
            f"Requires-Python: {project['requires-python']}\nLicense: Apache-2.0\nDescription-Content-Type: text/markdown\n\n{readme}")  # fmt: skip


def _sources():
    folder = os.path.join(HERE, "thaw")
    return sorted(name for name in os.listdir(folder) if name.endswith(".py") or name == "py.typed")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    project = _project()
    base = f"{project['name']}-{project['version']}"
    files = {f"{base}.dist-info/METADATA": _metadata(project).encode(),
             f"{base}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: thaw\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}  # fmt: skip
    for name in _sources():
        with open(os.path.join(HERE, "thaw", name), "rb") as file:
            files[f"thaw/{name}"] = file.read()
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files[f"{base}.dist-info/RECORD"] = f"{record}{base}.dist-info/RECORD,,\n".encode()
    wheel = f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, DATE)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return wheel


def build_sdist(sdist_directory, config_settings=None):
    project = _project()
    base = f"{project['name']}-{project['version']}"
    with tarfile.open(os.path.join(sdist_directory, f"{base}.tar.gz"), "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name in ["pyproject.toml", "README.md", "wheel_backend.py", *(f"thaw/{name}" for name in _sources())]:
            archive.add(os.path.join(HERE, name), f"{base}/{name}")
    return f"{base}.tar.gz"
