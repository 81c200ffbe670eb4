"""Secrets: files of the host, or kept by the daemon, shown in memory at /run/thaw/secrets, in no checkpoint, fresh at every start, and told
nowhere."""

import contextlib
import json
import os
import pathlib

import thawtest
from common import Pod
from thawtest import check, equal

GO = {"file": "/ctl/go"}
FIRST, SECOND = "kT7-first-secret-9q", "vB3-second-secret-4z"


def everything_said(daemon, pod):
    """All that the daemon shows or writes of a pod."""
    texts = [daemon.log.read_text(errors="replace"), json.dumps(daemon.events()), daemon.cli("ps", "-a").stdout]
    for path in ("/v1/pods", "/v1/replicas?all=true", "/v1/checkpoints", *(f"/v1/checkpoints/{r['id']}" for r in daemon.api("GET", "/v1/checkpoints"))):
        texts.append(json.dumps(daemon.api("GET", path)))
    return "\n".join(texts)


def holds(folder, text):
    """Files below it in which the text stands; not the memory of a process, which nobody can keep from what it read."""
    found = []
    for top, _, names in os.walk(folder):
        for path in [pathlib.Path(top, name) for name in names if not name.startswith("pages-")]:
            with contextlib.suppress(FileNotFoundError):  # of a slot that goes meanwhile
                if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                    found.append(str(path))
    return found


def test_secrets(daemon):
    """Cold and restored alike; the restored one has what the file holds now."""
    secret = daemon.data.parent / f"{daemon.data.name}-secret"
    thawtest.at_end(secret.unlink)
    secret.write_text(FIRST)
    for user in ("root", "app"):
        secret.write_text(FIRST)
        pod = Pod(daemon, f"as-{user}", when=GO, user=user, secrets=[{"name": "key.pem", "file": str(secret)}])
        pod.warm()
        checkpoint = pod.wait_checkpoint()
        cold = pod.only_replica()
        equal(daemon.exec(cold["id"], "cat", "/run/thaw/secrets/key.pem"), FIRST, "the secret of the cold replica")
        secret.write_text(SECOND)
        rows = daemon.scale(pod.name, 2)
        equal(rows[1]["outcome"], "Restored", f"how the second started ({rows[1]['reason']})")
        equal(daemon.exec(rows[1]["id"], "cat", "/run/thaw/secrets/key.pem"), SECOND, "the secret of the restored replica")
        number = {"root": "0", "app": "1000"}[user]
        for row in rows:
            found = daemon.exec(row["id"], "stat", "-c", "%a %u %F", "/run/thaw/secrets", "/run/thaw/secrets/key.pem").splitlines()
            equal(found, [f"700 {number} directory", f"400 {number} regular file"], "modes and owners")
            equal(daemon.exec(row["id"], "stat", "-f", "-c", "%T", "/run/thaw/secrets").strip(), "tmpfs", "where it lies")
            failed = daemon.exec(row["id"], "sh", "-c", "echo x > /run/thaw/secrets/other", check_exit=False)
            check(failed.returncode != 0, "the container can write there")
        said = everything_said(daemon, pod)
        check(FIRST not in said and SECOND not in said, "the secret is told")
        equal(holds(daemon.data, FIRST) + holds(daemon.data, SECOND), [], "files that hold the secret")
        check(not (daemon.data / "checkpoints" / checkpoint["id"] / "thaw" / "secrets").exists(), "the checkpoint has a folder for secrets")
        daemon.remove(pod.name)


def test_standby(daemon):
    """One that was restored before the secret changed has the new one when it is taken."""
    secret = daemon.data.parent / f"{daemon.data.name}-secret"
    thawtest.at_end(secret.unlink)
    secret.write_text(FIRST)
    pod = Pod(daemon, "waits", when=GO, user="app", secrets=[{"name": "key", "file": str(secret)}], replicas={"min": 1, "max": 2, "standby": 1})
    pod.warm()
    waiting = pod.wait_event("replica.standby")["replica"]
    secret.write_text(SECOND)
    row = daemon.scale(pod.name, 2)[1]
    equal(row["id"], waiting, "who was taken")
    equal(daemon.exec(row["id"], "cat", "/run/thaw/secrets/key"), SECOND, "the secret of the standby that was taken")
    equal(daemon.exec(row["id"], "sh", "-c", "stat -c '%a %u' /run/thaw/secrets/*; ls -A /run/thaw/secrets").split(), ["400", "1000", "key"], "its file")


def test_missing(daemon):
    """Refused at the deploy; when it goes later, the start fails and says which."""
    pod = Pod(daemon, "lacks", secrets=[{"name": "key", "file": "/nowhere/secret"}])
    done = daemon.cli("deploy", "-", input=json.dumps(pod.spec), check_exit=False)
    check(done.returncode == 2 and "/nowhere/secret" in done.stderr, f"`thaw deploy`: {done.returncode}, {done.stderr}")
    for bad in ("../up", "a/b", ".hidden", ""):
        pod.spec["secrets"] = [{"name": bad, "file": "/etc/hostname"}]
        done = daemon.cli("deploy", "-", input=json.dumps(pod.spec), check_exit=False)
        equal(done.returncode, 2, f"exit code of a deploy with a secret named {bad!r}")


def test_kept(daemon):
    """By the daemon, in a file of root's: set from standard input, shown to nobody, changed for the next start, not removed while it is named."""
    equal(daemon.cli("secret", "set", "api-token", input=FIRST).stdout, "api-token\n", "`thaw secret set`")
    folder, key = daemon.data / "sealed", daemon.data / "secrets.key"
    equal([oct(path.stat().st_mode) for path in (folder, folder / "api-token", key)], ["0o40700", "0o100600", "0o100600"], "modes")
    pod = Pod(daemon, "names", when=GO, user="app", secrets=[{"name": "token", "secret": "api-token"}])
    pod.warm()
    pod.wait_checkpoint()
    equal(daemon.exec(pod.only_replica()["id"], "cat", "/run/thaw/secrets/token"), FIRST, "the secret of the cold replica")
    equal(daemon.api("PUT", "/v1/secrets/api-token", SECOND.encode()), {"name": "api-token", "created": False}, "a change")
    row = daemon.scale(pod.name, 2)[1]
    equal(row["outcome"], "Restored", f"how the second started ({row['reason']})")
    equal(daemon.exec(row["id"], "sh", "-c", "cat /run/thaw/secrets/token; stat -c ' %a %u' /run/thaw/secrets/token").split(), [SECOND, "400", "1000"], "the secret of the restored replica")
    said = everything_said(daemon, pod) + json.dumps(daemon.api("GET", "/v1/secrets")) + daemon.cli("secret", "ls").stdout
    check("api-token" in said and FIRST not in said and SECOND not in said, "the secret is told, or its name is not")
    equal(holds(daemon.data, FIRST) + holds(daemon.data, SECOND), [], "files that hold the secret")
    done = daemon.cli("secret", "rm", "api-token", check_exit=False)
    check(done.returncode == 5 and "'names' uses it" in done.stderr, f"`thaw secret rm` of one in use: {done.returncode}, {done.stderr}")
    daemon.remove(pod.name)
    daemon.cli("secret", "rm", "api-token")
    equal(daemon.api("GET", "/v1/secrets"), [], "the secrets")
    done = daemon.cli("deploy", "-", input=json.dumps(pod.spec), check_exit=False)
    check(done.returncode == 2 and "thaw secret set" in done.stderr, f"`thaw deploy` that names none: {done.returncode}, {done.stderr}")


def test_sealed(daemon):
    """What an earlier version kept is encrypted at the start. Without the key, or with another, the daemon starts, says so, and loses nothing."""
    key, plain, sealed = daemon.data / "secrets.key", daemon.data / "secrets", daemon.data / "sealed"
    daemon.stop()
    plain.mkdir(mode=0o700)
    (plain / "old").write_text(FIRST)
    daemon.start()
    equal([plain.exists(), sorted(path.name for path in sealed.iterdir())], [False, ["old"]], "what is kept")
    equal(holds(daemon.data, FIRST), [], "files that hold it")
    pod = Pod(daemon, "opens", when=GO, secrets=[{"name": "key", "secret": "old"}])
    pod.warm()
    pod.wait_checkpoint()
    first = pod.only_replica()
    equal(daemon.exec(first["id"], "cat", "/run/thaw/secrets/key"), FIRST, "the secret")

    kept = key.read_text()
    for how, text, said in (("lost", None, "is gone"), ("wrong", "7" * 64, "sealed with another key"), ("no", "none", "64 hexadecimal digits")):
        daemon.stop()
        key.unlink(missing_ok=True)
        if text:
            key.write_text(text)
            key.chmod(0o600)
        daemon.start()
        pods = {p["name"]: p for p in daemon.api("GET", "/v1/pods")}
        check(said in pods["opens"]["problem"], f"a {how} key: {pods['opens']['problem']}")
        equal([row["id"] for row in daemon.replicas(pod.name, "ready")], [first["id"]], f"what lives with a {how} key")
        pod.get()
        if how == "lost":
            done = daemon.cli("secret", "set", "other", input="x", check_exit=False)
            check(done.returncode != 0 and "put it back" in done.stderr and not key.exists(), f"`thaw secret set` without the key: {done.stderr}")
    key.unlink()
    key.write_text(kept)
    key.chmod(0o600)
    # Nobody has to start the daemon anew for it.
    thawtest.wait_for(lambda: not daemon.api("GET", f"/v1/pods/{pod.name}")["problem"], "the pod runs again", 60, 0.2)
    row = daemon.scale(pod.name, 2)[1]
    equal((row["outcome"], daemon.exec(row["id"], "cat", "/run/thaw/secrets/key")), ("Restored", FIRST), "the second, and its secret")

    # The key elsewhere, as a user has it who keeps the two apart.
    elsewhere = thawtest.temporary_folder() / "key"
    key.rename(elsewhere)
    daemon.stop()
    daemon.start(more=["--secrets-key", elsewhere])
    row = daemon.scale(pod.name, 3)[2]
    equal((row["outcome"], daemon.exec(row["id"], "cat", "/run/thaw/secrets/key"), key.exists()), ("Restored", FIRST, False), "the third, and its secret")
    elsewhere.rename(key)
    daemon.remove(pod.name)


def test_variable_warns(daemon):
    """A secret among the variables lies in the checkpoint: the deploy says so."""
    pod = Pod(daemon, "warned", when=GO, env={"DB_PASSWORD": "x", "PLAIN": "y"})
    result = pod.deploy()
    found = [text for text in result["warnings"] if "DB_PASSWORD" in text]
    check(len(found) == 1 and "secrets" in found[0], f"the warnings: {result['warnings']}")
    check(not any("PLAIN" in text for text in result["warnings"]), f"the warnings: {result['warnings']}")


if __name__ == "__main__":
    thawtest.main(globals())
