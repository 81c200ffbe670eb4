"""Images: each kind of base and step, built for real, cached by content, and nothing left of what fails."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import thawtest
from common import APP, ROOTFS, base, client, equal, own_cache, raises, thaw, wait_for
from thaw import Image, build
from thawtest import check

DEBIAN = Image.debian("bookworm").apt("python3")
DEBIAN.build()  # in the machine's cache: once
MACHINE = pathlib.Path(build.cache_folder())
CACHE = own_cache()
(CACHE / "images").mkdir()
subprocess.run(["cp", "-al", MACHINE / "layers", CACHE / "images/layers"], check=True)


def listing():
    """What of builds is on disk, and what is mounted of it."""
    mounts = [line.split()[4] for line in open("/proc/self/mountinfo", encoding="utf-8") if str(CACHE) in line]
    return sorted(str(path) for path in [*CACHE.glob("images/layers/*"), *CACHE.glob("images/layers/.*"), *CACHE.glob("images/content/*/*")]), mounts


@contextlib.contextmanager
def without(tool):
    """As if it were not installed."""
    folder = tempfile.mkdtemp(dir=CACHE)
    for place in os.environ["PATH"].split(":"):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            if name != tool and not os.path.lexists(f"{folder}/{name}"):
                os.symlink(f"{place}/{name}", f"{folder}/{name}")
    path = os.environ["PATH"]
    os.environ["PATH"] = folder
    try:
        check(shutil.which(tool) is None, f"{tool} is still there")
        yield
    finally:
        os.environ["PATH"] = path


def wheel(folder):
    """A wheel, as a user's project would build it."""
    path = folder / "hello-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.py", "def greet():\n    return 'hello from a wheel'\n")
        archive.writestr("hello-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hello\nVersion: 1.0\n")
        archive.writestr("hello-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("hello-1.0.dist-info/RECORD", "hello.py,,\nhello-1.0.dist-info/METADATA,,\nhello-1.0.dist-info/WHEEL,,\nhello-1.0.dist-info/RECORD,,\n")
    return path


def test_debian_apt_pip_run_add(daemon):
    """All steps on a Debian made here, in a pod; the second build has nothing to do."""
    folder = daemon.data / "project"
    folder.mkdir()
    (folder / "main.py").write_text("import hello, time\nprint(hello.greet(), open('/made').read(), flush=True)\ntime.sleep(1000)\n")
    (folder / "secret.env").write_text("not for the container")
    (folder / ".thawignore").write_text("*.env\n")
    key = daemon.data / "key"
    key.write_text("s3cret")
    image = (
        DEBIAN.pip(str(wheel(daemon.data))).env(WORD="made").workdir("/srv/app")
        .run('printf %s "$WORD in $PWD" >/made && rm /etc/issue').add(str(folder)).add(str(APP / "app.py"), "/extra/other.py")
    )  # fmt: skip
    said = []
    pod = thaw.Pod("image", image, entrypoint=["python3", "main.py"], secrets={"key": str(key)}, user="1000:1000", min_replicas=1, max_replicas=2, stop_grace=0,
                   checkpoint_condition=thaw.log("hello"), client=client(daemon))  # fmt: skip
    pod.deploy(progress=said.append)
    built = [line for line in said if line.startswith("building")]
    equal(len(built), 4, f"layers that were built: {built}")
    equal(next(pod.logs()).text, "hello from a wheel made in /srv/app", "what the program says")
    text = pod.exec(["sh", "-c", "ls /srv/app /extra; cat /run/thaw/secrets/key; test -e /etc/issue || echo; echo $WORD; pwd; id -u"]).stdout
    equal(text.split(), ["/extra:", "other.py", "/srv/app:", "main.py", "s3cret", "made", "/srv/app", "1000"], "what the container sees")
    equal(pod.wait_checkpoint(180).status, "available", "the checkpoint")
    key.write_text("another")
    second = next(replica for replica in pod.scale(2) if replica.restored)
    equal(second.exec(["cat", "/run/thaw/secrets/key"]).stdout, "another", "the secret in a restored replica")
    before = listing()
    said.clear()
    image.build(said.append)
    equal((said, listing()), ([], before), "a second build")
    pod.remove()


def test_oci_and_dockerfile(daemon):
    """An OCI layout with an environment and a command, and a Dockerfile, by buildah and by podman, as bases."""
    check(shutil.which("buildah") and shutil.which("podman"), "buildah or podman is not installed: run scripts/setup")
    layout = daemon.data / "oci"
    root = pathlib.Path(ROOTFS)
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:small"], check=True)
    small = daemon.data / "small"
    for name in ("bin", "lib", "lib64"):
        (small / name).mkdir(parents=True)
    for program in ("sh", "sleep", "cat", "env"):
        shutil.copy(root / "usr/bin" / program, small / "bin" / program)
    (small / "lib/x86_64-linux-gnu").mkdir()
    for library in ("libc.so.6",):
        shutil.copy(root / "usr/lib/x86_64-linux-gnu" / library, small / "lib/x86_64-linux-gnu" / library)
    shutil.copy(root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", small / "lib64/ld-linux-x86-64.so.2")
    subprocess.run(["umoci", "insert", "--image", f"{layout}:small", small, "/"], check=True, capture_output=True)
    subprocess.run(["umoci", "config", "--image", f"{layout}:small", "--config.env=FROM=oci", "--config.env=PYTHONPATH=/lib/python", "--config.cmd=/bin/sh", "--config.cmd=-c", "--config.cmd=echo from $FROM; sleep 1000",
                    "--config.workingdir=/work"], check=True)  # fmt: skip
    note = daemon.data / "note.txt"
    note.write_text("added\n")

    whole = Image.from_oci(f"oci:{layout}:small").build()
    equal(whole.source, {"image": f"oci:{layout}:small"}, "an image without steps is the daemon's to fetch")
    equal(thaw.Pod("oci", Image.from_oci(f"oci:{layout}:small")).spec()["env"], {"PYTHONPATH": "/lib/python:/opt/thaw/python"}, "the image's own PYTHONPATH stays")
    pod = thaw.Pod("oci", Image.from_oci(f"oci:{layout}:small").add(str(note), "/note.txt"), min_replicas=1, stop_grace=0, client=client(daemon))
    pod.deploy()
    equal((next(pod.logs(follow=True)).text, pod.exec(["/bin/cat", "/note.txt"]).stdout), ("from oci", "added\n"), "what the image's own command says, and the added file")
    pod.remove()

    context = daemon.data / "context"
    shutil.copytree(small, context / "small")
    (context / "Dockerfile").write_text('FROM scratch\nARG WORD\nCOPY small /\nENV FROM=dockerfile-$WORD\nCMD ["/bin/sh", "-c", "echo from $FROM; sleep 1000"]\n')
    image = Image.from_dockerfile(str(context / "Dockerfile"), args={"WORD": "x"}).add(str(note), "/note.txt")
    (context / "small/word").write_text("one\n")
    (context / ".dockerignore").write_text("*\n!small\n")
    pod = thaw.Pod("dockerfile", image, min_replicas=1, stop_grace=0, client=client(daemon))
    pod.deploy()
    equal(next(pod.logs(follow=True)).text, "from dockerfile-x", "what the Dockerfile's command says")
    pod.remove()
    (context / "small/word").write_text("two\n")
    with without("buildah"):
        equal(pathlib.Path(image.build().source["rootfs"], "word").read_text(), "two\n", "an edited file that .dockerignore lets through")


def small_root(folder):
    """A root file system in which a shell runs: a layer of it is made in no time."""
    for name in ("sh", "env", "mkdir", "sleep", "true"):
        program = f"{ROOTFS}/usr/bin/{name}"
        for path in [program, *re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout)]:
            inner = folder / path.removeprefix(ROOTFS).lstrip("/")
            inner.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(path) if path != program else path, inner)
    (folder / "bin").exists() or os.symlink("usr/bin", folder / "bin")
    return Image.from_rootfs(str(folder), link=True)


def test_built_once():
    """Two deploys that need the same layer at the same time: one builds it, the other waits."""
    root = pathlib.Path(tempfile.mkdtemp(dir=CACHE))
    small_root(root)
    code = f"import thaw; print(thaw.Image.from_rootfs({str(root)!r}, link=True).run('echo once; sleep 1').build(lambda line: print(line, flush=True)).source)"
    builders = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [builder.communicate(timeout=240)[0].splitlines() for builder in builders]
    equal(sum("  once" in lines for lines in said), 1, f"how often it was built: {said}")
    equal(len({lines[-1] for lines in said}), 1, "the layers that they got")


def test_a_file_that_changes_while_it_is_read():
    """Between the look at it and the copy: refused, and nothing wrong is kept under the digest of what was there before."""
    folder, root = (pathlib.Path(tempfile.mkdtemp(dir=CACHE)) for _ in range(2))
    (folder / "words").write_text("before")
    image = small_root(root).add(str(folder))

    def edit(line):
        if str(folder) in line:
            (folder / "words").write_text("after!")

    raises(thaw.ThawError, lambda: image.build(edit), f"{folder}/words", "changed while it was read")
    (folder / "words").write_text("before")
    equal(pathlib.Path(image.build().source["rootfs"], "app/words").read_text(), "before", "the content that is kept")


def test_prune(daemon):
    """Layers above an added folder go like those of the folder; what a killed build left goes, what is being built stays."""
    folder, root = (pathlib.Path(tempfile.mkdtemp(dir=CACHE)) for _ in range(2))
    small = small_root(root)
    small.run("true").build()
    before = listing()[0]
    for word in ("one", "two"):
        (folder / "words").write_text(word)
        built = small.add(str(folder)).run("true").build()
    equal(len(set(CACHE.glob("images/layers/*")) - set(map(pathlib.Path, before))), 4, "layers of two builds")
    code = f"import thaw; thaw.Image.from_rootfs({str(root)!r}, link=True).run('echo under way; sleep 1000').build(lambda line: print(line, flush=True))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as builder:
        while "  under way" not in builder.stdout.readline():
            pass
        build.prune(client(daemon), kept=2)
        equal(len(list(CACHE.glob("images/layers/.*"))), 1, "work folders while a build is under way")
        builder.kill()
    build.prune(client(daemon), kept=2)
    equal(list(CACHE.glob("images/layers/.*")), [], "work folders after it was killed")
    check(pathlib.Path(built.source["rootfs"], "app/words").read_text() == "two", "the newest layers are gone")
    build.prune(client(daemon), kept=0)
    equal([path for path in listing()[0] if path not in before and "layer.json" not in path], [], "what is left")
    check(not list(CACHE.glob("images/content/*/*")), "contents that no layer has")


def test_failed_deploys_leave_nothing(daemon):
    """A step that fails, a program that ends, an interrupted build: no layer, no pod, no mount; the first error is the one that is seen."""
    base().run("true").build()  # finished layers stay, so they are there before
    folder = daemon.data / "broken"
    folder.mkdir()
    (folder / "main.py").write_text("print('about to fail', flush=True)\nraise SystemExit(7)\n")
    before = listing()

    def pod(image, **more):
        return thaw.Pod("broken", image, entrypoint=["python3", "main.py"], min_replicas=1, stop_grace=0,
                        checkpoint_condition=thaw.file("/never"), client=client(daemon), **more)  # fmt: skip

    error = raises(thaw.ThawError, lambda: pod(base().run("true").run("echo the reason; touch /half; exit 9").add(str(folder))).deploy(), "exit code 9", "the reason")
    equal(error.cleanup_errors, [], "clean-up after a failed step")
    error = raises(thaw.ThawError, lambda: pod(base().run("true").add(str(folder))).deploy(), "about to fail")
    equal((error.log, error.cleanup_errors), (["about to fail"], []), "the log of the replica that failed, and the clean-up")
    raises(thaw.ThawError, lambda: pod(base().run("true").add(str(folder)), mounts=["/nowhere/at/all:/x"]).deploy(), "/nowhere/at/all")
    raises(thaw.ThawError, lambda: pod(base().run("true").add(str(folder))).deploy(timeout=-1), "no number of seconds")
    said = []
    wrong = thaw.Pod("broken", base().run("sleep 1000"), entrypoint=["true"], checkpoint_condition=thaw.log("("), client=client(daemon))
    raises(thaw.InvalidError, lambda: wrong.deploy(progress=said.append), "checkpoint.when.log")
    equal(said, [], "what was built before the daemon refused")
    equal(listing(), before, "what is on disk")
    equal((daemon.api("GET", "/v1/pods"), daemon.api("GET", "/v1/checkpoints")), ([], []), "pods and checkpoints")

    def interrupted(line):
        if "sleeping" in line:
            raise KeyboardInterrupt

    raises(KeyboardInterrupt, lambda: pod(base().run("true").run("echo sleeping; sleep 1000")).deploy(progress=interrupted))
    equal(listing(), before, "what is on disk after an interrupt")

    # The clean-up fails, too: the daemon is not there any more when the pod is to be removed.
    elsewhere = thawtest.Daemon().start()
    broken = thaw.Pod("broken", base().run("true").add(str(folder)), entrypoint=["sleep", "1000"], min_replicas=1, stop_grace=0,
                      checkpoint_condition=thaw.file("/never"), client=client(elsewhere))  # fmt: skip

    def killed(line):
        if "replica.warming" in line:
            elsewhere.stop()

    error = raises(thaw.UnreachableError, lambda: broken.deploy(progress=killed), str(elsewhere.socket))
    check(error.cleanup_errors, "the failed clean-up is told, too")
    equal(listing(), before, "what is on disk after a failed clean-up")
    elsewhere.start()
    elsewhere.destroy()


def test_failed_change_is_put_back(daemon):
    """A pod that runs, and a change of it that does not: the old one serves on."""
    def pod(code):
        return thaw.Pod("change", base().add(str(APP)), entrypoint=["python3", *code], ports=[8000], min_replicas=1, stop_grace=1,
                        checkpoint_condition=thaw.http(), client=client(daemon))  # fmt: skip

    pod(["app.py"]).deploy()
    version = pod(["app.py"]).client.get("/v1/pods/change")["spec"]["command"]
    raises(thaw.ThawError, lambda: pod(["-c", "raise SystemExit('broken change')"]).deploy(), "broken change")
    wait_for(lambda: daemon.replicas("change", "ready"), "the old one serves again")
    equal(daemon.api("GET", "/v1/pods/change")["spec"]["command"], version, "the command after the failed change")
    pod(["app.py"]).remove()


def test_the_documented_way(daemon):
    """What docs/python.md tells a new user to type, upon an installed thaw: from nothing to a restored pod."""
    block = (thawtest.REPOSITORY / "docs/python.md").read_text().split("```")[1]
    commands = [line.partition("#")[0].strip() for line in block.strip().splitlines()]
    equal(commands[:2], ["scripts/setup && make install", "thaw daemon &"], "what this test does in its own way")
    prefix, folder = daemon.data / "prefix", daemon.data / "user"
    folder.mkdir()
    subprocess.run(["cmake", "--install", os.path.dirname(daemon.binary), "--prefix", prefix], check=True, capture_output=True, timeout=120)
    env = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "PATH": f"{prefix}/bin:{os.environ['PATH']}", "THAW_HOST": daemon.address}
    said = {}
    for command in commands[2:]:
        if command.startswith("thaw scale"):
            daemon.wait_checkpoint("hello")
        command = command.replace("http://127.0.0.1:PORT/", said.get("thaw deploy hello/app.py:pod", "?"))
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
        equal(done.returncode, 0, f"exit code of `{command}` ({done.stdout}{done.stderr})")
        said[command] = done.stdout.strip()
    check('"started_from": "cold"' in said[next(command for command in said if command.startswith("curl"))], f"the first answer: {said}")
    check(any(row["started_from"] != "cold" for row in daemon.replicas("hello")), "no replica was restored")
    daemon.remove("hello")


def test_sources_that_do_not_exist():
    """Said before anything is built."""
    raises(thaw.InvalidError, lambda: base().add("/no/such/folder").build(), "/no/such/folder")
    raises(thaw.InvalidError, lambda: base().pip("./no.whl").build(), "no.whl")
    raises(thaw.InvalidError, lambda: Image.from_rootfs("/no/such").run("true").build(), "/no/such")
    raises(thaw.InvalidError, lambda: Image.from_dockerfile("/no/Dockerfile").build(), "/no/Dockerfile")
    raises(thaw.ThawError, lambda: Image.from_oci("oci:/no/such:x").run("true").build(), "oci:/no/such:x")


if __name__ == "__main__":
    thawtest.main(globals())
