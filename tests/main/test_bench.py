"""bench/run in short: every row is measured, and says what its reader needs. No time is judged here."""

import json
import subprocess

import thawtest
from thawtest import check, equal

SYSTEMS = ["cold", "runc", "criu", "podman", "thaw-eager", "thaw-lazy", "thaw-cli", "thaw-slot", "thaw-standby", "floor"]


def test_rows():
    out = thawtest.temporary_folder()
    done = subprocess.run(
        [thawtest.REPOSITORY / "bench/run", "--heaps", "10", "--n", "1", "--cold", "0", "--systems", ",".join(SYSTEMS), "--out", out, "--thaw",
         thawtest.binary()], capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    equal(done.returncode, 0, f"its exit code\n{done.stdout}\n{done.stderr}")
    result = json.loads((out / "restore.json").read_text())
    check({"cores", "memory_mib", "kernel", "versions"} <= set(result["machine"]), f"the machine: {result['machine']}")
    equal([row["system"] for row in result["rows"]], SYSTEMS, "the rows")
    for row in result["rows"]:
        for key in ("median_ms", "p99_ms", "host_mib", "first100_p50_ms", "first100_p99_ms"):
            check(row[key] > 0, f"{key} of {row['system']}: {row}")
        equal((row["case"], row["heap_mib"], row["n"]), ("python-http", 10, 1), f"what {row['system']} measured")


if __name__ == "__main__":
    thawtest.main(globals())
