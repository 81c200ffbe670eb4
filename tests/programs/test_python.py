"""Python programs: one thread, many, forked workers, asyncio, an ordinary user's."""

import os

import thawtest
from roundtrip import APPS, MARKED, Program, app, http_live, tests
from thawtest import equal, wait_equal, wait_for


def worker_dies(original, restored):
    """Its master still hears of it, and forks another."""
    before, others = restored.json("/state")["workers"], original.json("/state")["workers"]
    try:
        restored.text("/die", "POST", "")
    except thawtest.Failure:
        pass  # it died before it answered
    workers = wait_for(lambda: (now := restored.json("/state")["workers"]) != before and now, "another worker in the restored replica")
    equal(len(set(workers) & set(before)), 3, "workers that were there before")
    equal(original.json("/state")["workers"], others, "the original's workers")

    def all_answer():
        # Four connections at once keep four workers busy; unless the newest does not accept yet.
        held = [restored.daemon.connect(restored.row, 8000) for _ in workers]
        answers = set()
        for connection in held:
            with connection:
                connection.sendall(b"GET /worker HTTP/1.0\r\n\r\n")
                answers.add(connection.makefile().read().split("\r\n\r\n")[-1].splitlines()[-1].strip('"'))
        return answers == set(workers)

    wait_for(all_answer, "each worker answers")


def own_logs(original, restored):
    """What each writes is in its own log."""
    wait_equal(lambda: original.daemon.logs(original.id).splitlines(), ["changed: first", "changed: third"], "the original's log")
    wait_equal(lambda: restored.daemon.logs(restored.id).splitlines(), ["changed: second"], "the restored replica's log")


def still_unprivileged(original, restored):
    for replica in (original, restored):
        equal(os.stat(f"/proc/{replica.row['pid']}").st_uid, 1000, "the process's user on the host")
        equal(replica.run("id", "-u"), "1000", "the user of an exec")
        replica.run("sh", "-c", "echo mine >/home/app/file; ! touch /etc/file 2>/dev/null")


# Several of one file system, with different flags: those that a restore makes must have the same.
MOUNTS = [
    {"source": str(APPS), "target": target, "readonly": readonly}
    for target, readonly in [("/app", True), ("/second", True), ("/writable", False), ("/third", True), ("/also-writable", False)]
] + [{"source": str(APPS / "warm.py"), "target": "/etc/file", "readonly": True}]


globals().update(
    tests(
        [
            Program("single", app("single.py"), spec={"mounts": MOUNTS}, more=own_logs),
            Program("threads", app("threads.py"), live=http_live),
            Program("prefork", app("prefork.py"), when=MARKED, live=http_live, more=worker_dies),
            Program("asyncio", app("aio.py"), live=http_live),
            Program("ordinary-user", app("single.py"), spec={"user": "1000:1000", "workdir": "/home/app"}, more=still_unprivileged),
            Program("ordinary-user-threads", app("threads.py"), live=http_live, spec={"user": "app", "checkpoint": {"when": {"http": {"path": "/health"}}, "memory": "eager"}}),
        ]
    )
)

if __name__ == "__main__":
    thawtest.main(globals())
