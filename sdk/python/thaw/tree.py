"""Folders of this machine: what of them counts, and what its content is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .errors import InvalidError

_NEVER = (".git", "__pycache__", ".gitignore", ".thawignore")


class Rule(NamedTuple):
    """One line of an ignore file, for paths relative to the folder that the file lies in."""

    pattern: "re.Pattern[str]"
    negated: bool
    folders_only: bool


def parse_ignore(text: str) -> List[Rule]:
    """The rules of a .gitignore (gitignore(5)).

    >>> parse_ignore("*.log\\n!keep.log\\n")[1].negated
    True
    """
    rules = []
    for line in text.splitlines():
        line = re.sub(r"(?<!\\) +$", "", line)
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        line = line[1:] if negated else line
        folders_only = line.endswith("/")
        line = line.rstrip("/") if folders_only else line
        anchored = "/" in line
        line = line[1:] if line.startswith("/") else line
        if line:
            rules.append(Rule(re.compile(("" if anchored else "(?:.*/)?") + _regex(line), re.DOTALL), negated, folders_only))
    return rules


def _regex(glob: str) -> str:
    out, at = "", 0
    while at < len(glob):
        char = glob[at]
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out, at = out + "(?:.*/)?", at + 3
        elif glob[at:] == "**" and (at == 0 or glob[at - 1] == "/"):
            out, at = out + ".+", at + 2
        elif char == "*":
            out, at = out + "[^/]*", at + 1
        elif char == "?":
            out, at = out + "[^/]", at + 1
        elif char == "[" and "]" in glob[at + 2 :]:
            end = glob.index("]", at + 2)
            body = glob[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            body = "^" + body[1:] if body.startswith(("!", "^")) else body
            out, at = out + f"(?!/)[{body}]", end + 1
        elif char == "\\" and at + 1 < len(glob):
            out, at = out + re.escape(glob[at + 1]), at + 2
        else:
            out, at = out + re.escape(char), at + 1
    return out


class Entry(NamedTuple):
    """Something in a folder; `path` is relative to it, with /."""

    path: str
    full: str
    info: os.stat_result


def walk(folder: str, ignore_files: Sequence[str] = (".gitignore", ".thawignore")) -> Iterator[Entry]:
    """What is in a folder and not ignored, sorted, folders before what is in them. Folders that hold nothing but ignored things are
    left out. What is neither a file, a folder nor a symbolic link is refused."""
    yield from _walk(folder, "", [], tuple(ignore_files))


def _walk(folder: str, prefix: str, rules: List[Tuple[str, List[Rule]]], ignore_files: Tuple[str, ...]) -> Iterator[Entry]:
    here = list(rules)
    for name in ignore_files:
        try:
            with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
                here.append((prefix, parse_ignore(file.read())))
        except (FileNotFoundError, IsADirectoryError):
            pass
    for name in sorted(os.listdir(folder)):
        full, path = os.path.join(folder, name), prefix + name
        try:
            info = os.lstat(full)
        except FileNotFoundError:
            continue  # an editor's file that is gone again
        is_folder = stat.S_ISDIR(info.st_mode)
        if name in _NEVER or _ignored(path, is_folder, here):
            continue
        if not (is_folder or stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            raise InvalidError("add", full, "it is a socket, a pipe or a device", "name it in .thawignore")
        if not is_folder:
            yield Entry(path, full, info)
            continue
        below = list(_walk(full, path + "/", here, ignore_files))
        if below or not os.listdir(full):
            yield Entry(path, full, info)
            yield from below


def _ignored(path: str, is_folder: bool, rules: List[Tuple[str, List[Rule]]]) -> bool:
    for prefix, lines in reversed(rules):
        for rule in reversed(lines):
            if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(path[len(prefix) :]):
                return not rule.negated
    return False


def whole(folder: str) -> List[List[str]]:
    """The facts of everything in a folder, whatever its ignore files say; of what is no file, folder or link only that it is there."""
    facts: List[List[str]] = []
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *folders]):
            full = os.path.join(where, name)
            path = os.path.relpath(full, folder)
            with contextlib.suppress(FileNotFoundError):  # an editor's file that is gone again
                info = os.lstat(full)
                if stat.S_ISREG(info.st_mode):
                    facts.append([path, oct(info.st_mode), file_digest(full, info)])
                else:
                    facts.append([path, oct(info.st_mode), os.readlink(full) if stat.S_ISLNK(info.st_mode) else ""])
    return facts


_known: Dict[Tuple[str, int, int, int, int], str] = {}
# A file that was changed this short before may be changed again within the same tick of its time-stamp.
_TICK_NS = 2_000_000_000


def file_digest(path: str, info: Optional[os.stat_result] = None) -> str:
    """SHA-256 of a file; asked again for an unchanged one, it is not read again."""
    info = info or os.stat(path)
    key = (path, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    if key in _known:
        return _known[key]
    with open(path, "rb") as file:
        digest = digest_of(file)
    if time.time_ns() - info.st_ctime_ns > _TICK_NS:
        _known[key] = digest
    return digest


def digest_of(file: BinaryIO, copy: Optional[BinaryIO] = None) -> str:
    """SHA-256 of what is read, and, with `copy`, written there."""
    digest = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return digest.hexdigest()


def entry_facts(entry: Entry) -> List[str]:
    """What of an entry is content: not its times, and of its mode only whether it can be executed."""
    if stat.S_ISLNK(entry.info.st_mode):
        return [entry.path, "link", os.readlink(entry.full)]
    if stat.S_ISDIR(entry.info.st_mode):
        return [entry.path, "folder"]
    return [entry.path, "program" if entry.info.st_mode & 0o111 else "file", file_digest(entry.full, entry.info)]
