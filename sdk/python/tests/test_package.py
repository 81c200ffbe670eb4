"""The parts of the package that need no daemon. Where there is an authority (git for ignore files), it is asked."""

import ast
import doctest
import glob
import importlib
import inspect
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import warnings

import helper_module
import thaw
from thaw import (
    Image, InvalidError, Pod, ThawError, after, all_, any_, callables, exec_, file, http, log, notify, python, tcp, tree, values, workers,
)  # fmt: skip
from thaw.client import Client
from thaw.undo import Undo

ROOTFS = Image.from_rootfs("/")


class Conditions(unittest.TestCase):
    def test_specifications(self):
        for condition, spec in (
            (http("/health", port=8000, status=204), {"http": {"path": "/health", "port": 8000, "status": 204}}),
            (http(), {"http": {"path": "/", "status": 200}}),
            (tcp(), {"tcp": {}}),
            (tcp(5432), {"tcp": {"port": 5432}}),
            (exec_("test", "-e", "/x"), {"exec": ["test", "-e", "/x"]}),
            (file("/run/thaw/ready"), {"file": "/run/thaw/ready"}),
            (log("up .*"), {"log": "up .*"}),
            (python("app.health:ready"), {"python": "app.health:ready"}),
            (python(helper_module.warm), {"python": "helper_module:warm"}),
            (notify(), {"notify": True}),
            (workers(4), {"workers": 4}),
            (after("1m30s"), {"after": "90000000us"}),
            (all_(notify(), helper_module.warm), {"all": [{"notify": True}, {"python": "helper_module:warm"}]}),
            (notify() | (tcp(1) & tcp(2)), {"any": [{"notify": True}, {"all": [{"tcp": {"port": 1}}, {"tcp": {"port": 2}}]}]}),
        ):
            with self.subTest(str(condition)):
                self.assertEqual(condition.to_spec(), spec)

    def test_refusals(self):
        deep = tcp(1)
        for _ in range(7):
            deep = all_(deep)
        for call in (
            lambda: http("health"), lambda: http(port=0), lambda: http(port="8000"), lambda: http(status=99), lambda: http(port=True), lambda: tcp(70000),
            lambda: exec_(), lambda: exec_(""  "a", 3), lambda: file("ready"), lambda: file("/a/../b"), lambda: log(""), lambda: log(b"x"), lambda: python("app"),
            lambda: python("app:"), lambda: python("a-b:c"), lambda: python(3), lambda: workers(0), lambda: workers(1.5), lambda: after("soon"), lambda: after(-1),
            lambda: after("2d"), lambda: all_(), lambda: any_("http"), lambda: all_(http), lambda: all_(deep),
        ):  # fmt: skip
            with self.assertRaises(InvalidError) as caught:
                call()
            self.assertIn("cannot ", str(caught.exception))
            self.assertTrue(caught.exception.cause and caught.exception.remedy, str(caught.exception))


class Callables(unittest.TestCase):
    def test_names(self):
        self.assertEqual(callables.name_of(helper_module.warm), "helper_module:warm")
        self.assertIs(callables.load("helper_module:warm"), helper_module.warm)
        self.assertEqual(callables.load("os.path:join")("a", "b"), "a/b")

    def test_refusals_say_what_to_write(self):
        def nested():
            return True

        for function, words in (
            (lambda: True, ["lambda", "def warm()"]),
            (nested, ["nested", "def nested()", "top level"]),
            (helper_module.Owner().method, ["belongs to an object", "top level"]),
            (helper_module.partial, ["no name"]),
            (helper_module.Owner.method, ["needs arguments", "method"]),
            (helper_module.Owner, ["a class"]),
            (helper_module.needs, ["needs arguments"]),
            (helper_module.yields, ["generator", "return"]),
            (helper_module.yields_later, ["generator"]),
        ):
            with self.assertRaises(InvalidError) as caught:
                python(function)
            for word in words:
                self.assertIn(word, str(caught.exception))

    def test_function_of_the_program_itself(self):
        """As it is when a user runs python3 app.py."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "app.py")
            with open(path, "w", encoding="utf-8") as out:
                out.write("import thaw\ndef warm(): return True\npod = thaw.Pod('x', 'docker://x', checkpoint_condition=warm)\n"
                          "try: pod.spec()\nexcept thaw.InvalidError as error: print(error)\n")  # fmt: skip
            done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True, timeout=60)
        self.assertIn("thaw deploy app.py:NAME", done.stdout)
        self.assertIn("__main__:warm", done.stdout)

    def test_load_refusals(self):
        for name, word in (("no_such_module:x", "no_such_module"), ("helper_module:nothing", "it has: "), ("helper_module", "module:function")):
            with self.assertRaises(InvalidError) as caught:
                callables.load(name)
            self.assertIn(word, str(caught.exception))


class Values(unittest.TestCase):
    def test_sizes_and_durations(self):
        for text, size in (("2GiB", 2 << 30), ("512Mi", 512 << 20), ("1.5KiB", 1536), ("1MB", 10**6), ("7", 7), (9, 9)):
            self.assertEqual(values.size("memory", text), size)
        for text, micros in (("1m30s", 90_000_000), ("500ms", 500_000), (2, 2_000_000), ("0.5", 500_000), ("1h", 3_600_000_000)):
            self.assertEqual(values.duration_us("x", text), micros)
        for wrong in ("2 GiBs", "-1", -1, True, None, "GiB", [1]):
            self.assertRaises(InvalidError, values.size, "memory", wrong)
        for wrong in ("1 m", "m", -1, "1x", None, True, "1m 30s", 1e9):
            self.assertRaises(InvalidError, values.duration_us, "x", wrong)


class Pods(unittest.TestCase):
    def test_wrong_arguments_of_every_kind(self):
        wrong = (
            {"name": "Model"}, {"name": "-a"}, {"name": ""}, {"name": 3}, {"image": 3}, {"image": "python:3.12"}, {"entrypoint": "python3 x"}, {"entrypoint": []},
            {"entrypoint": [1]}, {"ports": 8000}, {"ports": [0]}, {"ports": ["x:1"]}, {"ports": ["8000/udp"]}, {"ports": [8000, 8000]}, {"ports": ["nohost:9000:8000"]}, {"ports": ["9000:0"]}, {"ports": ["99999:80"]}, {"ports": [":80"]}, {"cpu": 0}, {"cpu": "2"}, {"cpu": True},
            {"memory": "much"}, {"memory": 10}, {"pids": 0}, {"gpu": -1}, {"gpu": 65}, {"gpu": 1.5}, {"env": {"A": 1}}, {"env": {"A B": "x"}},
            {"env": {"THAW_POD": "x"}}, {"env": ["A=1"]}, {"secrets": "file"}, {"secrets": [3]}, {"secrets": {"a/b": "x"}}, {"secrets": {"-a": "x"}}, {"secrets": ["a/key", "b/key"]}, {"secrets": {"a": ""}}, {"secrets": {"a": 3}}, {"mounts": ["x"]}, {"mounts": ["a:b"]},
            {"mounts": [{"source": "/a"}]}, {"mounts": [{"source": 3, "target": "/a"}]}, {"mounts": ["/a:/x", "/b:/x/"]}, {"mounts": ["/a:/run/thaw/x"]},
            {"mounts": ["/a:/"]}, {"mounts": ["/a:/opt/thaw/python"]}, {"mounts": ["/a:/proc"]}, {"user": ""}, {"workdir": "app"}, {"min_replicas": -1}, {"min_replicas": 1001}, {"max_replicas": 0},
            {"min_replicas": 3, "max_replicas": 2}, {"keep_warm": "long"}, {"checkpoint_enabled": "yes"}, {"checkpoint_condition": "http"},
            {"checkpoint_condition": http}, {"checkpoint_condition": http("/x")}, {"checkpoint_condition": lambda: True}, {"checkpoint_timeout": 0},
            {"checkpoint_on_timeout": "retry"}, {"checkpoint_verify": 1}, {"checkpoint_memory": "fast"}, {"stop_grace": "2h"}, {"idle": "sleep"}, {"idle": 1}, {"args": "x"}, {"network": "host"}, {"links": "a"}, {"links": ["A"]},
            {"routes": ["/"]}, {"routes": [{"hostname": "x"}]}, {"ports": [{"host": 1}]}, {"ports": [{"container": 1, "proto": "http"}]}, {"scale_down_delay": "x"}, {"concurrency": 0},
            {"standby": -1}, {"standby_warm": 1}, {"ready": 3}, {"alive": {"every": 1}}, {"alive": {"probe": notify(), "every": 0}}, {"alive": {"probe": notify(), "failures": 0}},
            {"before_checkpoint": ["x"]}, {"after_restore": "x", "checkpoint_condition": notify()}, {"client": "unix:/x"},
        )  # fmt: skip
        for arguments in wrong:
            with self.subTest(str(arguments)):
                with self.assertRaises(InvalidError) as caught:
                    Pod(**{"name": "x", "image": ROOTFS, **arguments})
                self.assertTrue(caught.exception.action and caught.exception.cause and caught.exception.remedy, str(caught.exception))
        self.assertRaises(TypeError, Pod, "x", ROOTFS, no_such_argument=1)
        pod = Pod("x", ROOTFS, entrypoint=["a"], client=Client("unix:/no/such/thaw.sock"))
        for call in (lambda: pod.scale("2"), lambda: pod.scale(2, timeout="x"), lambda: pod.checkpoint(timeout="x"), lambda: pod.wait_checkpoint(timeout=None),
                     lambda: pod.deploy(timeout=0), lambda: pod.exec("ls"), lambda: next(pod.events(after=-1)),
                     lambda: Pod("x", ROOTFS).deploy(), lambda: Pod("x", ROOTFS).spec()):  # fmt: skip
            self.assertRaises(InvalidError, call)

    def test_enabled_without_condition_lists_the_choices(self):
        with self.assertRaises(InvalidError) as caught:
            Pod("x", ROOTFS, checkpoint_enabled=True)
        for choice in ("http(", "tcp(", "exec_(", "file(", "log(", "function of your module", "notify()", "workers(", "after(", "all_(", "any_("):
            self.assertIn(choice, str(caught.exception))

    def test_defaults(self):
        self.assertFalse(Pod("x", ROOTFS).checkpoint_enabled)
        pod = Pod("x", ROOTFS, ports=[8000], checkpoint_condition=http())
        self.assertTrue(pod.checkpoint_enabled)
        self.assertFalse(Pod("x", ROOTFS, checkpoint_condition=notify(), checkpoint_enabled=False).checkpoint_enabled)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.assertFalse(Pod("x", ROOTFS, gpu=2, checkpoint_condition=notify()).checkpoint_enabled)
            self.assertTrue(Pod("x", ROOTFS, gpu=1, checkpoint_condition=notify()).checkpoint_enabled)
        self.assertEqual(len(caught), 1)


class Images(unittest.TestCase):
    def test_steps_make_new_images(self):
        base = Image.debian("bookworm")
        image = base.apt("python3").env(A="b").workdir("/srv").add(".", "/x")
        self.assertEqual(repr(base), "Image.debian('bookworm')")
        self.assertEqual(repr(image), "Image.debian('bookworm').apt('python3').env(A='b').workdir('/srv').add('.', target='/x')")

    def test_refusals(self):
        for call in (
            lambda: Image(), lambda: Image.debian("Bookworm!"), lambda: Image.from_oci("python"), lambda: Image.from_oci("docker://"), lambda: Image.from_rootfs(""),
            lambda: ROOTFS.apt(), lambda: ROOTFS.apt("-y"), lambda: ROOTFS.apt("a b"), lambda: ROOTFS.pip(), lambda: ROOTFS.pip("--pre"), lambda: ROOTFS.pip("./package"),
            lambda: ROOTFS.pip("./x-1-py3-none-any.whl[extra]"), lambda: ROOTFS.pip("/srv/package"), lambda: ROOTFS.run(""),
            lambda: ROOTFS.run(["a"]), lambda: ROOTFS.add(3), lambda: ROOTFS.add(".", "app"), lambda: ROOTFS.env(A=1), lambda: ROOTFS.workdir("x"),
        ):  # fmt: skip
            self.assertRaises(InvalidError, call)

    def test_ignore_files_are_as_git_has_them(self):
        paths = ["a.log", "keep.log", "src/a.log", "src/deep/x.py", "build/out", "src/build/out", "doc/a.txt", "doc/sub/a.txt", "foo/bar/baz", "x/foo/bar", "file1", "file22",
                 "fileA", "sp ace", "#hash", "!bang", "tmp/only/this", "data/keep/a", "data/drop/b", "a/b/c/d/e", "a/e", "vendor/x/y"]  # fmt: skip
        ignore = "*.log\n!keep.log\n/build\ndoc/*.txt\nfoo/bar\nfile?\n!file[A-C]\n\\#hash\n\\!bang\ntmp/\n# comment\n\ndata/*\n!data/keep\na/**/e\nvendor/**\nsp\\ ace\n"
        with tempfile.TemporaryDirectory() as folder:
            for path in paths:
                os.makedirs(os.path.join(folder, os.path.dirname(path)), exist_ok=True)
                open(os.path.join(folder, path), "w", encoding="utf-8").close()
            for name, text in ((".gitignore", ignore), ("src/.gitignore", "deep/*\n!*.log\n")):
                with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
                    out.write(text)
            subprocess.run(["git", "init", "-q", folder], check=True, timeout=30)
            listed = subprocess.run(["git", "-C", folder, "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard"], capture_output=True, text=True, check=True, timeout=30)
            wanted = sorted(path for path in listed.stdout.split("\0") if path and not path.endswith(".gitignore"))
            found = sorted(entry.path for entry in tree.walk(folder) if not os.path.isdir(entry.full))
            self.assertEqual(found, wanted)
            self.assertIn("src/a.log", found)
            with open(os.path.join(folder, ".thawignore"), "w", encoding="utf-8") as out:
                out.write("!a.log\nsrc/\n")
            found = [entry.path for entry in tree.walk(folder)]
            self.assertIn("a.log", found)
            self.assertNotIn("src/a.log", found)

    def walked(self, folder):
        return sorted(entry.path for entry in tree.walk(folder) if not os.path.isdir(entry.full))

    def test_every_pattern_is_as_git_has_it(self):
        """One folder a pattern, each with the same files; some are written down, the others are made by chance, always the same."""
        patterns = ["a[!]b]", "a[z-a]", "a[[:digit:]]", "a[[:digit:]x]", "a[[:nothing:]]", "a[\\]]", "foo**/bar", "a//", "a[bc", "a\\", "a[", "a[b-]", "a[]b]", "a[^b]", "a[[:x]",
                    "/**/bar", "**/bar", "**", "/**", "foo/***", "*/bar", "foo/**/bar", "foo**", "**bar", "foo/*", "/foo", "//foo", "foo/bar/", "/", "//", "a\\b", "\\a", "a?", "?",
                    "a b ", "a b\\ ", "a b\\\\ ", " a", "a\tb", "a\fb", "a\u2028b", "a\rb", "a\r", "\ufeffa", "é", "?é", "a[é]", "foo/\\bar", "foo\\/bar", "**\\/bar", "a[a-\\c]",
                    "a[\\a-c]", "[!a]*", "*[!r]", "foo/b[!x]r", "foo[/]bar", "foo[!x]bar", "foo?bar", "f*r", "f*/b*", "!a", "\\!a", "\\#a", "#a"]  # fmt: skip
        chance = random.Random(7)
        pieces = ["a", "b", "foo", "bar", "*", "**", "/", "?", "[", "]", "[ab]", "[!a]", "[a-c]", "-", "!", "\\", " "]
        patterns += ["".join(chance.choice(pieces) for _ in range(chance.randint(1, 6))) for _ in range(100)]
        paths = ["a", "b", "ab", "a1", "a]", "ax", "a-", "a[", "a\\", "a b", "a b ", "a\tb", "a\fb", "a\u2028b", "a\rb", "a\r", "é", "aé", "!a", "#a", "foo", "dir/foo/bar", "fo/x/bar",
                 "foobar", "fooxbar", "x/foo/y/bar", "x/a/b"]  # fmt: skip
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
            subprocess.run(["git", "init", "-q", top], check=True, timeout=30)
            for number, pattern in enumerate(patterns):
                for path in paths:
                    full = os.path.join(top, str(number), path)
                    os.makedirs(os.path.dirname(full), exist_ok=True)
                    open(full, "w", encoding="utf-8").close()
                with open(os.path.join(top, str(number), ".gitignore"), "wb") as out:
                    out.write(pattern.encode() + b"\n!/.gitignore\n")
            wanted = self.listed(top)
            for number, pattern in enumerate(patterns):
                with self.subTest(pattern):
                    prefix = f"{number}/"
                    self.assertEqual(self.walked(os.path.join(top, str(number))), [path[len(prefix) :] for path in wanted if path.startswith(prefix)])

    def listed(self, folder, *more):
        done = subprocess.run(["git", "-C", folder, "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard", *more], capture_output=True, check=True, timeout=60)
        return sorted(path for path in os.fsdecode(done.stdout).split("\0") if path and not path.endswith(".gitignore"))

    def test_what_lies_above_counts(self):
        """A folder within a repository: the .gitignore files on the way to it and .git/info/exclude; in a worktree, too."""
        with tempfile.TemporaryDirectory() as top:
            run = {"check": True, "timeout": 30, "capture_output": True}
            subprocess.run(["git", "init", "-q", f"{top}/main"], **run)
            subprocess.run(["git", "-C", f"{top}/main", "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-m", "x"], **run)
            subprocess.run(["git", "-C", f"{top}/main", "worktree", "add", "-q", f"{top}/tree"], **run)
            with open(f"{top}/main/.git/info/exclude", "w", encoding="utf-8") as out:
                out.write("*.bak\n/a/b/anchored\n")
            for where in ("main", "tree"):
                os.makedirs(f"{top}/{where}/a/b/sub")
                for name in ("x.log", "keep.log", "x.bak", "anchored", "sub/y.tmp", "sub/anchored", "x.tmp", "good"):
                    open(f"{top}/{where}/a/b/{name}", "w", encoding="utf-8").close()
                for place, text in (("", "*.log\na/b/x.tmp\n"), ("a/", "!keep.log\nb/sub/*.tmp\n"), ("a/b/", "")):
                    with open(f"{top}/{where}/{place}.gitignore", "w", encoding="utf-8") as out:
                        out.write(text)
                wanted = self.listed(f"{top}/{where}/a/b")
                self.assertEqual(self.walked(f"{top}/{where}/a/b"), wanted)
                self.assertEqual(wanted, ["good", "keep.log", "sub/anchored"])

    def test_the_own_file_has_the_last_word(self):
        """.thawignore wins over a .gitignore that lies deeper."""
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(f"{folder}/src")
            for path, text in ((".thawignore", "!src/model.bin\n*.py\n"), ("src/.gitignore", "*.bin\n!x.py\n"), ("src/model.bin", ""), ("src/x.bin", ""), ("src/x.py", ""), ("src/a", "")):
                with open(os.path.join(folder, path), "w", encoding="utf-8") as out:
                    out.write(text)
            self.assertEqual(self.walked(folder), ["src/a", "src/model.bin"])

    def test_content_is_what_counts(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a")
            with open(path, "w", encoding="utf-8") as out:
                out.write("one")
            first = [tree.entry_facts(entry) for entry in tree.walk(folder)]
            os.utime(path, (1, 1))
            self.assertEqual([tree.entry_facts(entry) for entry in tree.walk(folder)], first)
            with open(path, "w", encoding="utf-8") as out:
                out.write("two")
            os.utime(path, (1, 1))  # of the same size and time
            self.assertNotEqual([tree.entry_facts(entry) for entry in tree.walk(folder)], first)


class Others(unittest.TestCase):
    def test_clean_up_does_not_hide_the_error(self):
        steps = []

        def fails():
            raise RuntimeError("of the clean-up")

        with self.assertRaises(ThawError) as caught:
            with Undo() as undo:
                undo.add(lambda: steps.append("first"))
                undo.add(fails)
                undo.add(lambda: steps.append("last"))
                raise ThawError("unavailable", "deploy", "x", "the first error")
        self.assertEqual(steps, ["last", "first"])
        self.assertIn("the first error", str(caught.exception))
        self.assertEqual([str(error) for error in caught.exception.cleanup_errors], ["of the clean-up"])

    def test_addresses(self):
        for wrong in ("http://x", "unix:relative", "tls:host", "tls::1", "tls:h:99999", "tcp:h:1", 3):
            self.assertRaises(InvalidError, Client, wrong)
        with self.assertRaises(thaw.UnreachableError) as caught:
            Client("unix:/no/such/thaw.sock").get("/v1/version")
        self.assertIn("thaw daemon", str(caught.exception))
        self.assertRaises(InvalidError, Client, "tls:h:1", ca="/no/such/file")
        self.assertRaises(InvalidError, Client, "tls:h:1", token="two\nlines")

    def test_outside_a_replica(self):
        if thaw.inside():
            self.fail("these tests are for outside a replica")
        thaw.ready()
        self.assertFalse(thaw.wait_for_restore())
        self.assertFalse(thaw.checkpoint_enabled())
        self.assertRaises(ThawError, thaw.identity)
        threads = threading.active_count()
        self.assertEqual(thaw.on_restore(helper_module.warm)(), True)
        self.assertEqual(threading.active_count(), threads)
        self.assertRaises(InvalidError, thaw.on_restore, 3)
        self.assertRaises(InvalidError, thaw.on_restore, helper_module.needs)
        self.assertIs(thaw.on_restore(helper_module.defaults), helper_module.defaults)
        self.assertRaises(InvalidError, thaw.wait_for_restore, "soon")

    def test_the_library_inside_is_light(self):
        """A program in a container does not pay for what only a deploy needs."""
        code = "import sys, thaw; thaw.ready(); print(sorted({'http.client', 'subprocess', 'urllib.request'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60)
        self.assertEqual(done.stdout.strip(), "[]")

    def test_everything_public_is_there_and_has_an_example(self):
        documented = {name: getattr(thaw, name) for name in thaw.__all__}
        for owner in [value for value in documented.values() if isinstance(value, type)]:
            for name, value in vars(owner).items():
                if not name.startswith("_") and (isinstance(value, (property, staticmethod)) or inspect.isfunction(value)):
                    documented[f"{owner.__name__}.{name}"] = getattr(owner, name)
        for name, value in documented.items():
            self.assertIn(">>> ", inspect.getdoc(value) or "", name)

    def test_examples(self):
        """Those that need neither a daemon nor a container are run."""
        # What needs one speaks of a pod, a replica or a client, or says who this replica is.
        needs = re.compile(r"\b(pod|replica|client|identity|undo|build)\b|Client\(|\.spec\(|ready\(\)|checkpoint_enabled|inside|restore")
        found = tried = 0
        for name in ("build", "callables", "client", "conditions", "container", "errors", "image", "pod", "tree", "undo", "values"):
            module = importlib.import_module(f"thaw.{name}")
            for test in doctest.DocTestFinder().find(module, f"thaw.{name}", module=module):
                found += len(test.examples)
                test.examples = [example for example in test.examples if not needs.search(example.source)]
                tried += len(test.examples)
                self.assertEqual(doctest.DocTestRunner(verbose=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test).failed, 0, test.name)
        self.assertGreater(tried, found // 3)

    def test_for_python_3_9(self):
        """By its grammar always; by itself where there is one."""
        folder = os.path.dirname(thaw.__file__)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    ast.parse(file.read(), name, feature_version=(3, 9))
        old = next((path for path in (shutil.which("python3.9"), *glob.glob(os.path.expanduser("~/.pyenv/versions/3.9.*/bin/python"))) if path and "shims" not in path), None)
        if old and sys.version_info[:2] != (3, 9):
            done = subprocess.run([old, "-B", __file__], capture_output=True, text=True, check=False, timeout=110)
            self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
