"""Folders of this machine: what of them counts, and what its content is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .errors import InvalidError

_NEVER = (".git", "__pycache__", ".gitignore", ".thawignore")


class Rule(NamedTuple):
    """One line of an ignore file, for paths relative to the folder that the file lies in."""

    pattern: "re.Pattern[bytes]"
    negated: bool
    folders_only: bool


class Rules(NamedTuple):
    """An ignore file: `prefix` is taken off, or, with `above`, put before, the paths of the folder that is walked."""

    prefix: str
    above: str
    lines: List[Rule]


def parse_ignore(text: bytes) -> List[Rule]:
    """The rules of a .gitignore, as gitignore(5) and git's own dir.c and wildmatch.c have them; in bytes, as there.

    >>> parse_ignore(b"*.log\\n!keep.log\\n")[1].negated
    True
    """
    rules = []
    if text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    for line in text.split(b"\n"):
        if line.startswith(b"#"):
            continue
        line = _without_trailing_spaces(line[:-1] if line.endswith(b"\r") else line)
        negated = line.startswith(b"!")
        line = line[1:] if negated else line
        folders_only = line.endswith(b"/")
        line = line[:-1] if folders_only else line
        anchored = b"/" in line
        line = line[1:] if line.startswith(b"/") else line
        # git compares what comes before the first special character by itself: what follows begins a pattern of its own.
        plain = re.match(rb"[^*?\[\\]*", line)
        head = plain.group() if plain and anchored else b""
        regex = _regex(line[len(head) :], anchored) if line else None
        if regex is not None:
            rules.append(Rule(re.compile((b"" if anchored else b"(?:.*/)?") + re.escape(head) + regex, re.DOTALL), negated, folders_only))
    return rules


def _without_trailing_spaces(line: bytes) -> bytes:
    end, at = 0, 0
    while at < len(line):
        if line[at : at + 1] == b"\\":
            at += 1
            if at == len(line):
                return line
            end = at + 1
        elif line[at : at + 1] != b" ":
            end = at + 1
        at += 1
    return line[:end]


def _regex(glob: bytes, paths: bool) -> Optional[bytes]:
    """The regular expression of a pattern; None when nothing matches it. paths: it is for whole paths, where ** crosses slashes."""
    out, at = b"", 0
    while at < len(glob):
        char = glob[at : at + 1]
        if char == b"*":
            end = at
            while glob[end : end + 1] == b"*":
                end += 1
            if paths and end - at > 1 and (at == 0 or glob[at - 1 : at] == b"/") and (end == len(glob) or glob[end : end + 1] == b"/" or glob[end : end + 2] == b"\\/"):
                slash = glob[end : end + 1] == b"/"
                out, at = out + (b"(?:.*/)?" if slash else b".*"), end + slash
            else:
                out, at = out + b"[^/]*", end
        elif char == b"?":
            out, at = out + b"[^/]", at + 1
        elif char == b"[":
            found = _bracket(glob, at + 1)
            if found is None:
                return None
            out, at = out + b"(?!/)" + found[0], found[1]
        elif char == b"\\":
            if at + 1 == len(glob):
                return None
            out, at = out + re.escape(glob[at + 1 : at + 2]), at + 2
        else:
            out, at = out + re.escape(char), at + 1
    return out


_CLASSES = {
    b"alnum": b"0-9A-Za-z", b"alpha": b"A-Za-z", b"blank": rb" \t", b"cntrl": rb"\x00-\x1f\x7f", b"digit": b"0-9", b"graph": rb"\x21-\x7e", b"lower": b"a-z",
    b"print": rb"\x20-\x7e", b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e", b"space": rb" \t\n\r\x0b\x0c", b"upper": b"A-Z", b"xdigit": b"0-9A-Fa-f",
}  # fmt: skip


def _bracket(glob: bytes, at: int) -> Optional[Tuple[bytes, int]]:
    """The expression of [...], whose inside begins at `at`, and where it ends; None when it has no end, and matches nothing."""
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    body, before, first = b"", -1, True  # before: the character that a range may begin with
    while at < len(glob):
        char = glob[at]
        if char == ord("]") and not first:
            return (b"[" + (b"^" if negated else b"") + body + b"]" if body else (b"[\\x00-\\xff]" if negated else b"(?!)")), at + 1
        first = False
        if char == ord("-") and before >= 0 and at + 1 < len(glob) and glob[at + 1] != ord("]"):
            at += 1
            if glob[at] == ord("\\"):
                at += 1
                if at == len(glob):
                    return None
            if before <= glob[at]:
                body += b"\\x%02x-\\x%02x" % (before, glob[at])
            before, at = -1, at + 1
            continue
        if char == ord("[") and glob[at + 1 : at + 2] == b":":
            end = glob.find(b"]", at + 2)
            if end < 0:
                return None
            if end - 1 >= at + 2 and glob[end - 1] == ord(":"):
                if glob[at + 2 : end - 1] not in _CLASSES:
                    return None
                body += _CLASSES[glob[at + 2 : end - 1]]
                before, at = -1, end + 1
                continue
        if char == ord("\\"):
            at += 1
            if at == len(glob):
                return None
            char = glob[at]
        body += b"\\x%02x" % char
        before, at = char, at + 1
    return None


class Entry(NamedTuple):
    """Something in a folder; `path` is relative to it, with /."""

    path: str
    full: str
    info: os.stat_result


def walk(folder: str, lenient: bool = False) -> Iterator[Entry]:
    """What is in a folder and not ignored, sorted, folders before what is in them. Folders that hold nothing but ignored things are
    left out. What is neither a file, a folder nor a symbolic link is refused, or, lenient, left out."""
    yield from _walk(folder, "", _above(folder), [], lenient)


def _read(folder: str, name: str, prefix: str, above: str = "") -> List[Rules]:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return [Rules(prefix, above, parse_ignore(file.read()))]
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return []


def _above(folder: str) -> List[Rules]:
    """What git would read before it comes to the folder: the .gitignore of those that it lies in, and the repository's own file."""
    found: List[Rules] = []
    place, above = os.path.realpath(folder), ""
    while True:
        git = os.path.join(place, ".git")
        if os.path.lexists(git):
            return _read(_common(git), "info/exclude", "", above) + found
        parent = os.path.dirname(place)
        if parent == place:
            return []  # in no repository
        above = os.path.basename(place) + "/" + above
        found = _read(parent, ".gitignore", "", above) + found
        place = parent


def _common(git: str) -> str:
    """The folder that a .git is, or names, and that worktrees share."""
    if os.path.isfile(git):
        with open(git, encoding="utf-8", errors="surrogateescape") as file:
            git = os.path.join(os.path.dirname(git), file.read().partition("gitdir:")[2].strip())
    try:
        with open(os.path.join(git, "commondir"), encoding="utf-8", errors="surrogateescape") as file:
            return os.path.join(git, file.read().strip())
    except FileNotFoundError:
        return git


def _walk(folder: str, prefix: str, git: List[Rules], own: List[Rules], lenient: bool) -> Iterator[Entry]:
    git, own = git + _read(folder, ".gitignore", prefix), own + _read(folder, ".thawignore", prefix)
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return  # gone again
    for name in names:
        full, path = os.path.join(folder, name), prefix + name
        try:
            info = os.lstat(full)
        except FileNotFoundError:
            continue  # an editor's file that is gone again
        is_folder = stat.S_ISDIR(info.st_mode)
        if name in _NEVER:
            continue
        said = _verdict(path, is_folder, own)  # .thawignore has the last word
        if _verdict(path, is_folder, git) if said is None else said:
            continue
        if not (is_folder or stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            if lenient:
                continue
            raise InvalidError("add", full, "it is a socket, a pipe or a device", "name it in .thawignore")
        if not is_folder:
            yield Entry(path, full, info)
            continue
        below = list(_walk(full, path + "/", git, own, lenient))
        if below or _is_empty(full):
            yield Entry(path, full, info)
            yield from below


def _is_empty(folder: str) -> bool:
    try:
        return not os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _verdict(path: str, is_folder: bool, rules: List[Rules]) -> Optional[bool]:
    """Whether the last rule that speaks of it says that it is ignored; None when none does."""
    for prefix, above, lines in reversed(rules):
        name = os.fsencode(above + path[len(prefix) :])
        for rule in reversed(lines):
            if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(name):
                return not rule.negated
    return None


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
