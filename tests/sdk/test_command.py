"""The command line for pods in Python: thaw init, thaw deploy FILE.py:NAME, thaw serve; and what `make install` would put where."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import thawtest
from common import APP, ask, equal, own_cache, wait_for
from thawtest import check

own_cache()


def project(daemon, name):
    """An example of `thaw init`, upon the root file system of the tests."""
    folder = daemon.data / name
    daemon.cli("init", folder)
    equal(sorted(os.listdir(folder)), [".thawignore", "app.py", "server.py"], "what init writes")
    app = folder / "app.py"
    text = app.read_text().replace('Image.debian("bookworm").apt("python3")', f"Image.from_rootfs({os.environ['TEST_ROOTFS']!r}, link=True)")
    app.write_text(text.replace("ports=[8000],", "ports=[8000], stop_grace=0,"))
    (folder / "server.py").write_text((folder / "server.py").read_text().replace("time.sleep(5)", "pass"))
    return folder


def test_init_and_deploy(daemon):
    """The example is deployed as it is told to be, checkpointed, restored; from another folder, too."""
    folder = project(daemon, "my-example")
    done = daemon.cli("deploy", f"{folder}/app.py:pod")
    url = done.stdout.strip()
    equal(ask(url)["started_from"], "cold", "the first replica")
    daemon.wait_checkpoint("my-example")
    daemon.scale("my-example", 2)
    check(any(row["started_from"] != "cold" for row in daemon.replicas("my-example")), "no replica started from the checkpoint")
    equal(daemon.cli("deploy", "-q", f"{folder}/app.py:pod").stdout, "my-example\n", "deploy -q")
    spec = json.loads(daemon.cli("deploy", "--dry-run", f"{folder}/app.py:pod").stdout)
    equal(spec["checkpoint"]["when"], {"python": "app:warm"}, "the condition")
    done = daemon.cli("init", folder, check_exit=False)
    equal(done.returncode, 5, "exit code of init where files are")


def test_mistakes(daemon):
    """Each is one sentence, and an exit code; no traceback for what the user can put right."""
    folder = daemon.data / "mistakes"
    folder.mkdir()
    (folder / "app.py").write_text("from thaw import *\nnumber = 1\ndef fails(): raise RuntimeError\n")
    (folder / "main.py").write_text("from thaw import Pod\npod = Pod('x', 'docker://x', checkpoint_condition=lambda: True)\n")
    (folder / "needs.py").write_text("import no_such_module\n")
    (folder / "not-a-name.py").write_text("")
    (folder / "json.py").write_text("from thaw import Pod\npod = Pod('x', 'docker://x')\n")
    (folder / "needs_too.py").write_text("import need\n")
    for target, code, words in (
        ("app.py:number", 2, ["it is no pod but int"]),
        ("app.py:pod", 2, ["has no 'pod'"]),
        ("none.py:pod", 2, ["there is no file"]),
        ("not-a-name.py:pod", 2, ["rename the file"]),
        ("main.py:pod", 2, ["it is a lambda", "top level"]),
        ("needs.py:pod", 2, ["no_such_module", "install no_such_module"]),
        ("needs_too.py:pod", 2, ["install need,"]),
        ("json.py:pod", 2, ["another module 'json'", "rename the file"]),
    ):
        done = daemon.cli("deploy", f"{folder}/{target}", check_exit=False)
        equal(done.returncode, code, f"exit code of {target} ({done.stderr})")
        check(done.stderr.startswith("thaw: cannot ") and "Traceback" not in done.stderr and all(word in done.stderr for word in words), f"{target}: {done.stderr}")
    done = daemon.cli("deploy", "--cpu", "1", f"{folder}/app.py:pod", check_exit=False)
    check(done.returncode == 2 and "change the Pod(...)" in done.stderr, done.stderr)
    done = daemon.cli("serve", "pod.yaml", check_exit=False)
    check(done.returncode == 2 and "FILE.py:NAME" in done.stderr, done.stderr)
    done = daemon.cli("--host", "unix:/nowhere/thaw.sock", "deploy", f"{APP}/app.py:pod", check_exit=False)
    check(done.returncode == 3 and "/nowhere/thaw.sock" in done.stderr, done.stderr)


def save(path, text):
    """Whole, as editors do it: what is written in two steps may be deployed in two."""
    new = path.parent.parent / f"{path.name}.new"
    new.write_text(text)
    os.replace(new, path)


def test_serve(daemon):
    """A saved file is deployed again; a mistake in it does not end serve; the terminal's end removes the pod."""
    folder = project(daemon, "served")
    log = open(daemon.data / "serve.log", "w+", encoding="utf-8")
    process = subprocess.Popen([daemon.binary, "serve", f"{folder}/app.py:pod"], env={**daemon.env, "THAW_HOST": daemon.address, "PYTHONUNBUFFERED": "1"},
                               stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
    thawtest.at_end(process.kill)

    def said():
        log.seek(0)
        return log.read()

    def version():
        return daemon.api("GET", "/v1/pods/served")["version"]

    wait_for(lambda: "| ready" in said() or process.poll() is not None, "the program's output is shown", 180)
    check(process.poll() is None, f"serve ended: {said()}")
    first = version()
    (folder / "app.log").write_text("ignored by .thawignore")
    server = folder / "server.py"
    good = server.read_text()
    save(server, good.replace("print(\"ready\"", "print(\"changed\""))
    wait_for(lambda: "| changed" in said(), "the changed program runs", 180)
    equal(version(), first + 1, "version after one change")
    save(folder / "app.py", (folder / "app.py").read_text().replace("memory=\"512MiB\"", "memory=\"lots\""))
    wait_for(lambda: "it is no size" in said(), "the mistake is told", 180)
    check(process.poll() is None, "a mistake ended serve")
    equal(version(), first + 1, "version after a mistake")

    # A socket in the folder is refused by the deploy, not by the watch; a folder that comes and goes is nothing at all.
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(folder / "odd.sock"))
        app = folder / "app.py"
        save(app, app.read_text().replace('memory="lots"', 'memory="512MiB"'))
        wait_for(lambda: "it is a socket" in said(), "the socket is told of", 180)
    for _ in range(50):
        (folder / "comes/and").mkdir(parents=True)
        shutil.rmtree(folder / "comes")
    os.unlink(folder / "odd.sock")
    # A new name is a new pod, and the old one goes; a folder that the changed file adds is watched.
    added = daemon.data / "added"
    added.mkdir()
    (added / "word").write_text("one")
    save(app, app.read_text().replace('name="served"', 'name="renamed"').replace('.add(".")', f'.add(".").add("{added}", "/added")'))
    wait_for(lambda: [pod["name"] for pod in daemon.api("GET", "/v1/pods")] == ["renamed"] and daemon.replicas("renamed", "ready"), "the renamed pod alone", 180)
    wait_for(lambda: daemon.exec("renamed", "cat", "/added/word") == "one", "the added folder")
    wait_for(lambda: said().count("| changed") > 1, "the renamed pod's output is shown", 180)
    save(added / "word", "two")
    wait_for(lambda: [row["version"] for row in daemon.replicas("renamed", "ready")] == [2], "an edit in the added folder is deployed", 180)
    check(process.poll() is None, f"serve ended: {said()}")
    process.send_signal(signal.SIGHUP)
    equal(process.wait(180), 130, f"exit code of serve: {said()}")
    equal(daemon.api("GET", "/v1/pods"), [], "pods after serve")
    log.close()


def test_wheel_and_install(daemon):
    """The wheel, built offline by the package's own backend, and the folder that `make install` fills: both can be imported, typed."""
    source = daemon.data / "source"
    shutil.copytree(thawtest.REPOSITORY / "sdk/python", source, ignore=shutil.ignore_patterns("__pycache__"))
    dist = daemon.data / "dist"
    subprocess.run(["/usr/bin/python3", "-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "-w", dist, source], check=True, timeout=120, stdin=subprocess.DEVNULL)
    wheels = os.listdir(dist)
    equal(wheels, ["thaw-0.1.0-py3-none-any.whl"], "what is built")
    site = daemon.data / "site"
    subprocess.run(["/usr/bin/python3", "-m", "pip", "install", "-q", "--no-index", "--root-user-action=ignore", "--target", site, dist / wheels[0]], check=True, timeout=120)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = "import thaw, os; print(os.path.dirname(thaw.__file__)); print(thaw.http('/x'), os.path.exists(os.path.join(os.path.dirname(thaw.__file__), 'py.typed')))"
    found = subprocess.run([sys.executable, "-c", code], env={**env, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True, timeout=180).stdout.split("\n")
    equal(found[:2], [f"{site}/thaw", "http('/x') True"], "the installed wheel")

    prefix = daemon.data / "prefix"
    build = os.path.dirname(daemon.binary)
    subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True, capture_output=True, timeout=120)
    done = subprocess.run([prefix / "bin/thaw", "init", daemon.data / "from-install"], env=env, capture_output=True, text=True, check=False, timeout=60)
    equal(done.returncode, 0, f"thaw init, installed: {done.stderr}")
    check((prefix / "include/thaw.h").exists() and (prefix / "lib/thaw/node/index.js").exists(), "the C header and the node module are not installed")


def test_installed_where_python_looks(daemon):
    """`make install` for /usr/local and /usr, seen from a mount namespace where nothing of this host's is changed: python3 finds the package."""
    build = os.path.dirname(daemon.binary)
    for prefix in ("/usr/local", "/usr"):
        work = daemon.data / prefix.replace("/", "-")
        (work / "upper").mkdir(parents=True)
        (work / "work").mkdir()
        script = (f"mount -t overlay overlay -o lowerdir={prefix},upperdir={work}/upper,workdir={work}/work {prefix} && cmake --install {build} --prefix {prefix} >{work}/log && "
                  "cd / && exec env -u PYTHONPATH /usr/bin/python3 -c 'import thaw; print(thaw.__file__)'")  # fmt: skip
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
        equal(done.stdout.strip(), f"{prefix}/lib/thaw/python/thaw/__init__.py", f"what python3 imports after an install into {prefix} ({done.stderr})")


if __name__ == "__main__":
    thawtest.main(globals())
