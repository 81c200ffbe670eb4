"""Memory at rest that cannot be used: broken, another's, or too large for the quota. The start is cold, as with any other checkpoint."""

import struct
import subprocess

import thawtest
from test_rest import folder, pattern, restores_right, row_of
from thawtest import check, equal, wait_for

MIB = 1 << 20


def starts_cold(pod, checkpoint, outcome, status):
    row = pod.daemon.scale(pod.name, 1)[0]
    equal((row["started_from"], row["outcome"]), ("cold", outcome), f"the replica (its reason is: {row['reason']})")
    equal(row_of(pod.daemon, checkpoint)["status"], status, "the checkpoint")


def flip(path, where):
    with open(path, "r+b") as file:
        file.seek(where)
        byte = file.read(1)[0]
        file.seek(where)
        file.write(bytes([byte ^ 0x5A]))


def test_damage():
    """A broken frame, another's frames, and a file that is gone: as with any other broken checkpoint."""
    with thawtest.Daemon() as daemon:
        pod, first = pattern(daemon, mib=16)
        other, theirs = pattern(daemon, "other", mib=17)
        daemon.cli("checkpoint", "compress", first["id"])
        name = max((folder(daemon, first) / "rest").iterdir(), key=lambda p: p.stat().st_size)
        flip(name, name.stat().st_size // 2)
        starts_cold(pod, first, "Corrupt", "restore_failed")

        # The scrub finds it without a start, and puts nothing on the disk.
        daemon.cli("checkpoint", "compress", theirs["id"])
        name = max((folder(daemon, theirs) / "rest").iterdir(), key=lambda p: p.stat().st_size)
        flip(name, name.stat().st_size // 3)
        done = daemon.cli("checkpoint", "verify", theirs["id"], check_exit=False)
        check(done.returncode == 1 and "rest/" in done.stderr, f"`thaw checkpoint verify`: {done.returncode}, {done.stderr}")
        starts_cold(other, theirs, None, "restore_failed")

        # A good file of the same size that holds something else: only the digest tells.
        second = {"id": wait_for(lambda: daemon.api("GET", f"/v1/pods/{pod.name}")["checkpoint"]["id"], "another is offered")}
        daemon.scale(pod.name, 0)
        image = max(folder(daemon, second).glob("images/pages-*"), key=lambda p: p.stat().st_size)
        changed = bytearray(image.read_bytes())
        changed[len(changed) // 2] ^= 1
        daemon.cli("checkpoint", "compress", second["id"])
        write_seekable(folder(daemon, second) / "rest" / (image.name + ".zst"), bytes(changed))
        starts_cold(pod, second, "Corrupt", "restore_failed")
        check("sha256" in row_of(daemon, second)["reason"], f"the reason: {row_of(daemon, second)['reason']}")


def write_seekable(path, data):
    """`data` in zstd's seekable format, made by zstd's own program."""
    out, table = b"", b""
    pieces = [data[at : at + MIB] for at in range(0, len(data), MIB)]
    for piece in pieces:
        frame = subprocess.run(["zstd", "-q", "-c"], input=piece, capture_output=True, timeout=60, check=True).stdout
        out, table = out + frame, table + struct.pack("<II", len(frame), len(piece))
    tail = struct.pack("<II", 0x184D2A5E, len(table) + 9) + table + struct.pack("<IBI", len(pieces), 0, 0x8F92EAB1)
    path.write_bytes(out + tail)


def test_no_room():
    """A quota counts what is on the disk; one that does not fit inflated is not used now, and stays."""
    with thawtest.Daemon("--checkpoint-quota", "190MiB") as daemon:
        one, first = pattern(daemon, "one", 64, FORKS="0")
        daemon.cli("checkpoint", "compress", first["id"])
        two, second = pattern(daemon, "two", 64, FORKS="0")
        three, third = pattern(daemon, "three", 64, FORKS="0")
        # All three fit only because one is compressed.
        equal([row_of(daemon, row)["status"] for row in (first, second, third)], ["available"] * 3, "the checkpoints")
        daemon.scale("two", 1)
        daemon.scale("three", 1)
        row = daemon.scale("one", 1)[0]
        equal((row["started_from"], row["outcome"]), ("cold", "Unavailable"), f"the replica (its reason is: {row['reason']})")
        check("quota" in row["reason"], f"its reason: {row['reason']}")
        equal(row_of(daemon, first)["status"], "available", "the checkpoint")
        check(row_of(daemon, first)["compressed"], "it is compressed still")
        # What is not in use makes room.
        for name in ("one", "two", "three"):
            daemon.scale(name, 0)
        daemon.cli("checkpoint", "retry", "one")
        restores_right(one, first)


if __name__ == "__main__":
    thawtest.main(globals())
