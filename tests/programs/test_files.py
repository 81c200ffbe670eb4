"""Files: everything done to the root file system, open files without a name, shared memory."""

import dataclasses
import json
import pathlib

import thawtest
from roundtrip import Program, Replica, app, deploy, http_live, http_state, same_state, tests
from thawtest import check, equal


def files_state(replica):
    return {"program": http_state(replica), "tree": json.loads(replica.run("python3", "/app/files.py", "tree"))}


OVERLAY = Program("overlay", app("files.py"), state=files_state)


def test_checkpoint_of_a_restored_replica(daemon):
    """What a restored replica changed in what it was restored with belongs to its own checkpoint, and to the one of a replica restored from that."""
    program = dataclasses.replace(OVERLAY, name="generations")
    replica = deploy(daemon, program)
    checkpoint = daemon.wait_checkpoint(program.name)
    root = next(line for line in replica.run("cat", "/proc/self/mountinfo").splitlines() if line.split()[4] == "/")
    check(any(option.endswith("volatile") for option in root.split()[-1].split(",")), f"a file that is opened for writing would be written to the disk first: {root}")
    for generation in ("second", "third"):
        replicas = daemon.scale(program.name, 2)
        daemon.api("POST", f"/v1/replicas/{replica.id}/stop")  # the pod wants one less from then on
        replica = Replica(daemon, next(row for row in replicas if row["id"] != replica.id))
        equal(replica.row["started_from"], checkpoint["id"], f"the start of the {generation} replica ({replica.row['reason']})")
        if generation == "third":
            same_state(program.state(replica), mine, "the state of the third replica")
        program.change(replica, generation)
        mine = program.state(replica)
        checkpoint = daemon.api("POST", f"/v1/pods/{program.name}/checkpoint")
        equal(checkpoint["status"], "available", f"the checkpoint of the {generation} replica ({checkpoint['reason']})")
        same_state(program.state(replica), mine, f"the state of the {generation} replica after its dump")
    restored = next(row for row in daemon.scale(program.name, 2) if row["id"] != replica.id)
    equal(restored["started_from"], checkpoint["id"], f"the start of the last replica ({restored['reason']})")
    same_state(program.state(Replica(daemon, restored)), mine, "the state of the last replica")
    daemon.remove(program.name)


def shared_memory_is_its_own(original, restored):
    """What it has much of is written by processes of Thaw's, and charged to the replica."""
    names = [phase["name"] for phase in restored.refresh()["phases"]]
    check("restoring/criu restore/shared memory" in names, f"no shared memory was written: {names}")
    maps = pathlib.Path(f"/proc/{restored.row['pid']}/maps").read_text()
    check(".thaw." not in maps, f"CRIU has made it:\n{maps}")
    for replica in (original, restored):
        groups = [line.split(":", 2) for line in pathlib.Path(f"/proc/{replica.row['pid']}/cgroup").read_text().splitlines()]
        group = next((f"/sys/fs/cgroup/memory{path}" for _, names, path in groups if "memory" in names.split(",")), None)
        group = group or next(f"/sys/fs/cgroup{path}" for _, names, path in groups if not names)
        stat = dict(line.split() for line in (pathlib.Path(group) / "memory.stat").read_text().splitlines())
        check(int(stat["shmem"]) > 9 << 20, f"{replica.id} is charged for {stat['shmem']} bytes of shared memory")


globals().update(
    tests(
        [
            OVERLAY,
            Program("deleted", app("deleted.py")),
            Program("shm", app("shm.py"), live=http_live, more=shared_memory_is_its_own),
        ]
    )
)

if __name__ == "__main__":
    thawtest.main(globals())
