"""Unix sockets and pipes between a parent and its child, with data under way in each of them."""

import array
import fcntl
import os
import secrets
import signal
import socket
import threading

import warm

token = secrets.token_hex(8)
UNREAD = 40000
pairs = {
    "stream": socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM),
    "datagram": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "seqpacket": socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}


def connected(address):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    near = socket.socket(socket.AF_UNIX)
    near.connect(address)
    return listener, (near, listener.accept()[0])


named, pairs["named"] = connected("/tmp/named.sock")
abstract, pairs["abstract"] = connected("\0thaw")
gone, pairs["deleted name"] = connected("/tmp/gone.sock")
os.unlink("/tmp/gone.sock")
datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
datagrams.bind("/tmp/datagrams.sock")

# Nobody reads these before the dump.
waiting = {
    "stream": socket.socketpair(),
    "datagram": socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "half closed": socket.socketpair(),
    "peer gone": socket.socketpair(),
}
waiting["stream"][0].sendall(os.urandom(UNREAD))
for number in range(3):
    waiting["datagram"][0].send(f"{number} {token}".encode())
for name in ("half closed", "peer gone"):
    waiting[name][0].sendall(token.encode())
waiting["half closed"][0].shutdown(socket.SHUT_WR)
waiting["peer gone"][0].close()
pipe = os.pipe()
fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 17)
os.write(pipe[1], os.urandom(UNREAD))
os.mkfifo("/tmp/fifo")
fifo = os.open("/tmp/fifo", os.O_RDWR)
os.write(fifo, token.encode())
same = os.dup(fifo)

if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def answer(end):
        while data := end.recv(100):
            end.send(data.upper())

    for _, far in pairs.values():
        threading.Thread(target=answer, args=(far,)).start()
    threading.Event().wait()
for _, far in pairs.values():
    far.close()


def unread(fd):
    count = array.array("i", [0])
    fcntl.ioctl(fd, 0x541B, count)  # FIONREAD
    return count[0]


def state():
    return {
        # Not the names of the peers: CRIU restores accepted sockets without theirs.
        "names": {name: str(near.getsockname()) for name, (near, _) in pairs.items()},
        "stream": waiting["stream"][1].recv(UNREAD, socket.MSG_PEEK).hex()[:100],
        "datagram": waiting["datagram"][1].recv(100, socket.MSG_PEEK).decode(),
        "half closed": waiting["half closed"][1].recv(100, socket.MSG_PEEK).decode(),
        "peer gone": waiting["peer gone"][1].recv(100, socket.MSG_PEEK).decode(),
        "unread": {"stream": unread(waiting["stream"][1].fileno()), "pipe": unread(pipe[0]), "fifo": unread(fifo)},
        "pipe size": fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ),
        "same": os.fstat(same).st_ino == os.fstat(fifo).st_ino,
    }


def change(text):
    for name, (near, _) in pairs.items():
        near.settimeout(20)
        near.send(text.encode())
        back = near.recv(100)
        if back != text.upper().encode():
            raise ValueError(f"{name}: {back!r} came back")
    # Listeners still listen, by the same names.
    for listener, address in ((named, "/tmp/named.sock"), (abstract, "\0thaw")):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            with listener.accept()[0] as served:
                served.sendall(text.encode())
            if client.recv(100) != text.encode():
                raise ValueError(f"{address!r} does not answer")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(text.encode(), "/tmp/datagrams.sock")
    if datagrams.recv(100) != text.encode():
        raise ValueError("no datagram came")
    # What was under way arrives once, whole, in order.
    got = b""
    while len(got) < 1000:
        got += waiting["stream"][1].recv(1000 - len(got))
    if waiting["half closed"][1].recv(100) != token.encode() or waiting["half closed"][1].recv(100) != b"":
        raise ValueError("half closed: not what was sent, and then its end")
    waiting["half closed"] = waiting["peer gone"]
    os.read(pipe[0], 10)
    os.write(fifo, text.encode())


warm.serve(state, change)
