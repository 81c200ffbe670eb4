"""Images: a root file system, described as a base and steps. Nothing is built before a pod is deployed, and then only what is new."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from . import values
from .errors import InvalidError

if TYPE_CHECKING:
    from .build import Built


class Step(NamedTuple):
    """A base, or one step upon it. `folder` is what relative paths of this machine are relative to."""

    kind: str
    arguments: Dict[str, Any]
    folder: str


class Image:
    """A base and steps; each step makes a new image and leaves this one as it is. Steps are cached layers, keyed by content: the text of
    the step, the bytes of the files that it takes, and all that is below it.

    >>> image = Image.debian("bookworm").apt("python3", "python3-numpy").add(".")
    >>> image
    Image.debian('bookworm').apt('python3', 'python3-numpy').add('.')
    """

    __slots__ = ("_steps",)

    def __init__(self, _steps: Tuple[Step, ...] = ()) -> None:
        if not _steps or not all(isinstance(step, Step) for step in _steps):
            raise InvalidError("make", "Image", "it has no base", "begin with Image.debian('bookworm'), Image.from_oci(...), Image.from_rootfs(...) or Image.from_dockerfile(...)")
        self._steps = _steps

    def __repr__(self) -> str:
        def call(step: Step) -> str:
            given = {key: value for key, value in step.arguments.items() if value not in (None, [], {}, False)}
            first = given.pop("*", given.pop("0", None))
            words = [repr(word) for word in (first if isinstance(first, list) else [] if first is None else [first])]
            return f"{step.kind}({', '.join(words + [f'{key}={value!r}' for key, value in given.items()])})"

        return "Image." + ".".join(map(call, self._steps))

    def _then(self, kind: str, arguments: Dict[str, Any]) -> Image:
        return Image((*self._steps, Step(kind, arguments, os.getcwd())))

    # --- bases ---

    @staticmethod
    def debian(suite: str = "bookworm") -> Image:
        """Debian's essential packages and apt, from the mirrors that this machine itself uses (mmdebstrap).

        >>> Image.debian("bookworm").apt("python3")
        Image.debian('bookworm').apt('python3')
        """
        if not isinstance(suite, str) or not suite.replace("-", "").isalnum() or suite != suite.lower():
            raise InvalidError("use suite", suite, "it is no name of a Debian release", "give one such as 'bookworm'")
        return Image((Step("debian", {"0": suite}, os.getcwd()),))

    @staticmethod
    def from_oci(reference: str) -> Image:
        """An OCI or docker image: docker://, oci:, oci-archive:, docker-archive: or dir: (skopeo). Its environment, command, user and
        working folder are taken over.

        >>> Image.from_oci("docker://docker.io/library/python:3.12")
        Image.from_oci('docker://docker.io/library/python:3.12')
        """
        kinds = ("docker://", "oci:", "oci-archive:", "docker-archive:", "dir:")
        if not isinstance(reference, str) or not reference.startswith(kinds) or reference in kinds:
            raise InvalidError("use image", reference, "it is no reference of an image", "give one that begins with " + ", ".join(kinds[:-1]) + f" or {kinds[-1]}, such as 'docker://docker.io/library/python:3.12'")
        return Image((Step("from_oci", {"0": reference}, os.getcwd()),))

    @staticmethod
    def from_rootfs(directory: str, link: bool = False) -> Image:
        """A folder that is a root file system. Used as it is when there are no steps; with steps it is copied once, or, with link=True,
        its files are linked: only for a folder whose files nobody changes in place.

        >>> Image.from_rootfs("/srv/rootfs")
        Image.from_rootfs('/srv/rootfs')
        """
        return Image((Step("from_rootfs", {"0": _path("directory", directory), "link": values.flag("link", link)}, os.getcwd()),))

    @staticmethod
    def from_dockerfile(path: str = "Dockerfile", context: Optional[str] = None, args: Optional[Mapping[str, str]] = None) -> Image:
        """What a Dockerfile builds (buildah, or podman's own build). The context is its folder unless given; .dockerignore is honoured.

        >>> Image.from_dockerfile("Dockerfile", args={"VERSION": "3"})
        Image.from_dockerfile('Dockerfile', args={'VERSION': '3'})
        """
        arguments = {"0": _path("Dockerfile", path), "context": None if context is None else _path("context", context), "args": values.environment(args or {}, "args")}
        return Image((Step("from_dockerfile", arguments, os.getcwd()),))

    # --- steps ---

    def apt(self, *packages: str) -> Image:
        """Installs packages of Debian or Ubuntu, without those that are only recommended.

        >>> Image.debian().apt("python3", "curl")
        Image.debian('bookworm').apt('python3', 'curl')
        """
        for package in values.words("apt", list(packages), '.apt("python3")'):
            if not package or package.startswith("-") or not all(c.isalnum() or c in "+-.:=~/_" for c in package):
                raise InvalidError("use apt", package, "it is no name of a package", 'give one name a word, such as .apt("python3", "curl")')
        return self._then("apt", {"*": list(packages)})

    def pip(self, *packages: str, requirements: Optional[str] = None, index_url: Optional[str] = None) -> Image:
        """Installs Python packages: names as pip takes them, or wheels of this machine ('./dist/model-1.0-py3-none-any.whl').

        >>> Image.debian().apt("python3").pip("flask==3.0.*", "./dist/model-1.0-py3-none-any.whl")
        Image.debian('bookworm').apt('python3').pip('flask==3.0.*', './dist/model-1.0-py3-none-any.whl')
        """
        if not packages and requirements is None:
            raise InvalidError("use pip", "pip()", "it names nothing to install", 'give packages, such as .pip("flask"), or requirements="requirements.txt"')
        found = values.words("pip", list(packages), '.pip("flask")') if packages else []
        for package in found:
            if package.startswith("-"):
                raise InvalidError("use pip", package, "it is an option of pip", "give packages; for an index there is index_url=")
            if package.startswith((".", "/", "~")) and not package.endswith(".whl"):
                wheel = ".whl[" in package
                raise InvalidError("use pip", package, "of a wheel of this machine, extras are not known" if wheel else "of this machine, only wheels can be installed",
                                   "name what the extra needs beside the wheel" if wheel else f"build one, `python3 -m pip wheel --no-deps {package}`, and give that")  # fmt: skip
        requirements = None if requirements is None else _path("requirements", requirements)
        return self._then("pip", {"*": found, "requirements": requirements, "index_url": None if index_url is None else values.text("index_url", index_url)})

    def run(self, command: str) -> Image:
        """Runs a command in the image, by its /bin/sh, as root, with the machine's network.

        >>> Image.debian().run("useradd --create-home app")
        Image.debian('bookworm').run('useradd --create-home app')
        """
        return self._then("run", {"0": values.text("run", command, 'give a shell command, such as .run("make install")')})

    def add(self, source: str, target: Optional[str] = None) -> Image:
        """Adds a file or a folder of this machine: into the working folder (/app when none is set), or at `target`.

        What .gitignore and .thawignore name is left out (the same patterns; .thawignore has the last word), and .git and __pycache__.
        Files are known by their content: what has not changed is not copied again.

        >>> Image.debian().add(".").add("weights.bin", "/models/weights.bin")
        Image.debian('bookworm').add('.').add('weights.bin', target='/models/weights.bin')
        """
        return self._then("add", {"0": _path("source", source), "target": None if target is None else values.inner_path("target", target)})

    def env(self, **variables: str) -> Image:
        """Sets environment variables, for the steps that follow and for the pod.

        >>> Image.debian().env(MODE="fast")
        Image.debian('bookworm').env(MODE='fast')
        """
        return self._then("env", dict(values.environment(variables)))

    def workdir(self, path: str) -> Image:
        """Sets the working folder, for the steps that follow and for the pod.

        >>> Image.debian().workdir("/srv").add(".")
        Image.debian('bookworm').workdir('/srv').add('.')
        """
        return self._then("workdir", {"0": values.inner_path("workdir", path)})

    def build(self, progress: Optional[Callable[[str], None]] = None) -> Built:
        """Builds what is not there yet. Needs root, as making files of other users does. pod.deploy() calls it.

        >>> Image.debian("bookworm").build(print).source
        {'rootfs': '/var/cache/thaw/images/layers/…/rootfs'}
        """
        from . import build

        return build.build(self._steps, progress or (lambda _: None))

    def has_command(self) -> bool:
        """Whether its base can have a command of its own: a pod of it then needs no entrypoint.

        >>> Image.debian("bookworm").has_command()
        False
        """
        return self._steps[0].kind in ("from_oci", "from_dockerfile")

    def sources(self) -> Tuple[str, ...]:
        """Files and folders of this machine that it takes: `thaw serve` watches them.

        >>> Image.debian("bookworm").add("/srv/app").sources()
        ('/srv/app',)
        """
        found = []
        for step in self._steps:
            if step.kind in ("add", "from_dockerfile"):
                found.append(os.path.join(step.folder, step.arguments["0"]))
            if step.kind == "from_dockerfile":
                found.append(os.path.join(step.folder, step.arguments["context"] or os.path.dirname(step.arguments["0"])))
        return tuple(os.path.normpath(path) for path in found)


def _path(what: str, value: Any) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    return values.text(what, path, "give a path of this machine")
