"""What the kernel answers to system calls that a container has no business with, and to some that it needs. Run as a program: JSON."""

import ctypes
import json
import sys

# Numbers of x86_64; with arguments that make each harmless where it is allowed after all.
CALLS = {
    "io_uring_setup": (425, 0, 0), "io_uring_enter": (426, -1, 0, 0, 0), "io_uring_register": (427, -1, 0, 0, 0),
    "bpf": (321, -1, 0, 0), "userfaultfd": (323, -1), "perf_event_open": (298, 0, 0, -1, -1, 0), "kexec_load": (246, 0, 1, 0, 0),
    "kexec_file_load": (320, -1, -1, 0, 0, 0), "init_module": (175, 0, 0, 0), "finit_module": (313, -1, 0, 0), "delete_module": (176, 0, 0),
    "clock_settime": (227, 0, 0), "settimeofday": (164, 1, 1), "acct": (163, 1), "swapon": (167, 0, 0), "quotactl": (179, 0, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0), "fanotify_init": (300, -1, 0), "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "sethostname": (170, 0, 0),
    "move_pages": (279, 0, 1, 0, 0, 0, 0), "vmsplice": (278, -1, 0, 0, 0), "add_key": (248, 0, 0, 0, 0, 0), "request_key": (249, 0, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0), "personality of no randomness": (135, 0x40000), "personality asked": (135, 0xFFFFFFFF), "audit socket": (41, 16, 3, 9),
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0), "keyctl": (250, -1), "getpid": (39,), "a call of the future": (1000,),
}  # fmt: skip


def calls():
    """Name to errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, words in CALLS.items():
        ctypes.set_errno(0)
        result = libc.syscall(*[ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word) for word in words])
        found[name] = ctypes.get_errno() if result < 0 else 0
    return found


if __name__ == "__main__":
    json.dump(calls(), sys.stdout)
