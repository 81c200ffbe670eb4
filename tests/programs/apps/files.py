"""What a program can do to its root file system, done before the dump. `files.py tree` prints all of it, to compare."""

import collections
import hashlib
import json
import mmap
import os
import shutil
import socket
import stat
import struct
import sys

FOLDERS = ["/srv", "/etc", "/usr/share/common-licenses", "/usr/share/base-files", "/opt", "/home", "/root", "/var/spool", "/mnt"]
ODD = os.fsdecode(b"odd \xff\xfe name\n\t,:\\")


def entry(path):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    found = {"mode": oct(info.st_mode), "owner": [info.st_uid, info.st_gid]}
    if kind != stat.S_IFDIR:
        found |= {"size": info.st_size, "file": (info.st_dev, info.st_ino)}
        found["modified"] = info.st_mtime_ns
    if kind == stat.S_IFREG:
        found["sparse"] = info.st_size > 1 << 20 and info.st_blocks * 512 < info.st_size // 2
        with open(path, "rb") as file:
            found["content"] = hashlib.sha256(file.read()).hexdigest()
    if kind == stat.S_IFLNK:
        found["target"] = os.readlink(path)
    names = os.listxattr(path, follow_symlinks=False)
    found["attributes"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names)}
    return found


def tree():
    found = {}
    for top in FOLDERS:
        for folder, folders, names in os.walk(top):
            for name in sorted([*folders, *names]):
                path = os.path.join(folder, name)
                found[path] = entry(path)
    # The kernel's own count has names outside the container, too: an image's files may be linked from elsewhere on the host.
    names = collections.Counter(value["file"] for value in found.values() if "file" in value)
    for value in found.values():
        if "file" in value:
            value["links"] = names[value.pop("file")]
    # Bound by Thaw, and another for each replica.
    for name in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
        found.pop(name, None)
    return {path.encode("utf-8", "surrogateescape").hex() if ODD in path else path: value for path, value in found.items()}


def write(path, text, mode="w"):
    with open(path, mode, encoding="utf-8") as file:
        file.write(text)


def work():
    # New things.
    os.makedirs("/srv/new/deep/er")
    write("/srv/new/deep/er/file", "new")
    write(f"/srv/new/{ODD}", "odd")
    write("/srv/new/" + "n" * 255, "a long name")
    os.symlink("/nowhere/at/all", "/srv/new/dangling")
    os.mkfifo("/srv/new/fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("/srv/new/socket")
    os.mkdir("/srv/new/sticky")
    os.chmod("/srv/new/sticky", 0o3777)
    write("/srv/new/setuid", "x")
    os.chown("/srv/new/setuid", 1000, 1000)
    os.chmod("/srv/new/setuid", 0o6755)
    os.utime("/srv/new/setuid", ns=(1_000_000_001, 2_000_000_002))
    os.utime("/srv/new/dangling", ns=(3_000_000_003, 4_000_000_004), follow_symlinks=False)
    # Hard links: within a folder, across folders, of a link, to a file of the image.
    write("/srv/new/one", "linked")
    os.link("/srv/new/one", "/srv/new/two")
    os.link("/srv/new/one", "/srv/new/deep/three")
    os.link("/srv/new/dangling", "/srv/new/dangling-too", follow_symlinks=False)
    os.link("/etc/nsswitch.conf", "/srv/new/nsswitch")
    # Sparse: a hole at the beginning, in the middle, at the end; a file that is all hole.
    with open("/srv/new/sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"data")
        file.seek(32 << 20)
        file.write(b"more")
        file.truncate(64 << 20)
    with open("/srv/new/hole", "wb") as file:
        file.truncate(16 << 20)
    # Attributes, on files and folders; an access control list; a capability.
    os.setxattr("/srv/new/one", "user.note", b"\0binary\xff")
    os.setxattr("/srv/new/deep", "user.folder", b"yes")
    os.setxattr("/srv/new/setuid", "user.empty", b"")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, who) for tag, perm, who in [(1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    )
    os.setxattr("/srv/new/two", "system.posix_acl_access", acl)
    os.setxattr("/srv/new/deep", "system.posix_acl_default", acl)
    shutil.copy("/bin/true", "/srv/new/capable")
    os.setxattr("/srv/new/capable", "security.capability", struct.pack("<IIIII", 0x02000000, 1 << 10, 0, 0, 0))
    # Changes to the image: content, mode only, owner only, times only, an attribute only.
    write("/etc/passwd", "new:x:2000:2000::/:/bin/sh\n", "a")
    os.chmod("/etc/debian_version", 0o600)
    os.chown("/etc/shells", 1000, 1000)
    os.utime("/etc/host.conf", ns=(5_000_000_005, 6_000_000_006))
    os.setxattr("/etc/login.defs", "user.note", b"seen")
    os.chmod("/mnt", 0o711)
    # Deletions: a file, a link, a folder with what is in it; a file that a folder takes the place of, and the other way round.
    os.unlink("/etc/issue")
    os.unlink("/usr/share/common-licenses/GPL")
    shutil.rmtree("/var/spool")
    os.mkdir("/var/spool")
    os.unlink("/etc/legal") if os.path.exists("/etc/legal") else None
    os.unlink("/etc/gai.conf")
    os.mkdir("/etc/gai.conf")
    write("/etc/gai.conf/file", "in a folder")
    shutil.rmtree("/usr/share/common-licenses")  # whole, and again with one file: an opaque folder
    os.mkdir("/usr/share/common-licenses")
    write("/usr/share/common-licenses/mine", "mine")
    shutil.rmtree("/opt")
    write("/opt", "a file now")
    os.unlink("/opt")
    os.mkdir("/opt")
    # Moves: within the new, from the image, a folder of the image (which the overlay refuses, so that it is copied).
    os.rename("/srv/new/deep/er", "/srv/new/moved")
    os.rename("/etc/environment", "/srv/environment") if os.path.exists("/etc/environment") else None
    shutil.move("/usr/share/base-files", "/srv/base-files")
    os.mkdir("/usr/share/base-files")
    # What is written and deleted again leaves nothing.
    write("/srv/gone", "gone")
    os.unlink("/srv/gone")


def main():
    import warm

    work()
    written = open("/srv/open", "w+", encoding="utf-8")  # and stays so
    written.write("before the dump\n")
    written.flush()
    appended = os.open("/srv/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(appended, b"first\n")
    image = open("/usr/share/misc/magic" if os.path.exists("/usr/share/misc/magic") else "/bin/ls", "rb")
    image.seek(100)
    shared = os.open("/srv/mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(shared, 1 << 16)
    data = mmap.mmap(shared, 1 << 16)
    data[:5] = b"begin"
    with open("/srv/private", "wb") as file:
        file.write(b"p" * 8192)
    with open("/srv/private", "r+b") as file:
        private = mmap.mmap(file.fileno(), 8192, flags=mmap.MAP_PRIVATE)
    private[:7] = b"changed"
    os.chdir("/srv/new/moved")

    def state():
        return {
            "position": [written.tell(), os.lseek(appended, 0, os.SEEK_CUR), image.tell()],
            "mapped": hashlib.sha256(data).hexdigest(),
            "private": [bytes(private[:7]).decode(), open("/srv/private", "rb").read(7).decode()],
            "log": open("/srv/log", encoding="utf-8").read(),
            "open": open("/srv/open", encoding="utf-8").read(),
            "cwd": os.getcwd(),
        }

    def change(text):
        written.write(text)
        written.flush()
        os.write(appended, text.encode())
        data[100 : 100 + len(text)] = text.encode()
        write(f"/srv/new/changed-by-{text}", text)
        # Names of one file stay names of one file.
        write("/srv/new/deep/three", text, "a")
        for name in ("one", "two"):
            if not open(f"/srv/new/{name}", encoding="utf-8").read().endswith(text):
                raise ValueError(f"what was written to deep/three does not show in {name}, which was the same file")
        write("/etc/nsswitch.conf", f"# {text}", "a")
        if not open("/srv/new/nsswitch", encoding="utf-8").read().endswith(text):
            raise ValueError("what was written to /etc/nsswitch.conf does not show in its other name")
        write("/etc/issue", text)
        if not open("/srv/mapped", "rb").read()[100:].startswith(text.encode()):
            raise ValueError("the map and the file are two things")
        if image.read(1) == b"":
            raise ValueError("a file of the image cannot be read any more")
        image.seek(100)

    warm.serve(state, change)


if sys.argv[1:] == ["tree"]:
    json.dump(tree(), sys.stdout)
else:
    main()
