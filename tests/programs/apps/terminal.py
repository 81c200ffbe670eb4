"""A shell on a pseudo terminal: its session, its variables, the terminal's settings and size."""

import fcntl
import os
import secrets
import struct
import termios
import threading

import warm

master, slave = os.openpty()
settings = termios.tcgetattr(slave)
settings[3] &= ~termios.ECHO
settings[6][termios.VINTR] = b"\x07"
termios.tcsetattr(slave, termios.TCSANOW, settings)
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))
shell = os.fork()
if shell == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(slave, number)
    os.closerange(3, 100)
    os.execve("/bin/bash", ["bash", "--norc", "--noediting", "-i"], {"PS1": "", "PS2": "", "PATH": os.environ["PATH"], "TERM": "dumb"})
name = os.ttyname(slave)
os.close(slave)
lock = threading.Lock()


def read_until(mark):
    text = b""
    while mark not in text:
        text += os.read(master, 4096)
    return text.decode()


def ask(command):
    """What the command writes."""
    with lock:
        mark = secrets.token_hex(4)
        os.write(master, f"{command}\necho end-'{mark}'\n".encode())
        return read_until(f"end-{mark}".encode()).split(f"end-{mark}")[0].strip().splitlines()[-1:]


def state():
    return {
        "token": ask("echo $TOKEN $COUNT"),
        "tty": ask("tty"),
        "name": name,
        "size": ask("stty size"),
        "settings": ask("stty -g"),
        "session": ask("ps -o sid=,tty= -p $$"),
        "job": ask("jobs -r | wc -l"),
        "ours": [struct.unpack("4H", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))[:2], termios.tcgetattr(master)[:4]],
    }


def change(text):
    ask(f"COUNT=${{COUNT}}{text}")
    # Job control: the terminal's own interrupt key ends the program in its foreground.
    with lock:
        os.write(master, b"sh -c 'trap \"echo got-it; exit\" INT; echo wait-for-it; while :; do sleep 0.05; done'\n")
        read_until(b"wait-for-it")
        os.write(master, b"\x07")
        read_until(b"got-it")


ask(f"TOKEN={secrets.token_hex(8)}; COUNT=; sleep 100000 &")
ask("true")
warm.serve(state, change)
