"""Servers as they come from their packages: node.js, Redis, nginx, Java, PostgreSQL."""

import contextlib
import hashlib

import thawtest
from roundtrip import MARKED, Program, http_live, tests
from thawtest import check, equal, wait_for

# --- Redis: asked in its own protocol ---


def redis(replica, *words):
    """One command; a simple value, or a list of them."""
    with replica.daemon.connect(replica.row, 6379) as connection, connection.makefile("rwb") as stream:
        stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in (str(w).encode() for w in words)))
        stream.flush()

        def value():
            line = stream.readline().decode().strip()
            if line[0] == "$":
                return None if line == "$-1" else stream.read(int(line[1:]) + 2)[:-2].decode()
            if line[0] == "*":
                return [value() for _ in range(int(line[1:]))]
            check(line[0] != "-", f"Redis: {words}: {line}")
            return line[1:]

        return value()


def redis_state(replica):
    return {
        "token": redis(replica, "GET", "token"),
        "keys": redis(replica, "DBSIZE"),
        "one of many": redis(replica, "GET", "key:12345"),
        "hash": redis(replica, "HGETALL", "hash"),
        "sorted": redis(replica, "ZRANGE", "sorted", "0", "-1", "WITHSCORES"),
        "stream": redis(replica, "XLEN", "stream"),
        "notes": redis(replica, "LRANGE", "notes", "0", "-1"),
    }


def redis_persists(original, restored):
    """Its append-only file is its own; a forked child rewrites it; what is read back is what was in memory."""
    for replica in (original, restored):
        check(86000 < int(redis(replica, "TTL", "short-lived")) <= 86400, "a key's time to live")
        redis(replica, "BGREWRITEAOF")

        def rewritten():
            info = dict(line.split(":") for line in redis(replica, "INFO", "persistence").splitlines() if ":" in line)
            return info["aof_rewrite_in_progress"] == "0" and info["aof_last_bgrewrite_status"] == "ok" and info["aof_last_write_status"] == "ok"

        wait_for(rewritten, "the append-only file is rewritten")
    said = restored.run("sh", "-c", "redis-check-aof /data/appendonlydir/*.manifest")
    check("is valid" in said, f"the append-only file: {said}")


# --- nginx ---


def nginx_state(replica):
    return {"token": replica.text("/state"), "pages": replica.run("ls", "/srv/www")}


def nginx_change(replica, text):
    replica.run("sh", "-c", f"echo {text} >/srv/www/{text}")
    equal(replica.text(f"/{text}").strip(), text, "the page that was added")


def nginx_workers(replica):
    """Those that answer. Each has a listener of its own, among which the kernel spreads connections."""
    return {replica.text("/worker") for _ in range(40)}


def nginx_reloads(original, restored):
    equal(len(nginx_workers(original)), 2, "workers of the original that answer")
    old = nginx_workers(restored)
    equal(len(old), 2, "workers of the restored replica that answer")
    restored.run("sh", "-c", "kill -HUP 1")

    def reloaded():
        with contextlib.suppress(thawtest.Failure):  # a worker that leaves takes with it whom it has not accepted yet
            now = nginx_workers(restored)
            return len(now) == 2 and not now & old

    wait_for(reloaded, "nginx has reloaded and has new workers")
    log = restored.run("sh", "-c", "nginx -c /app/nginx.conf -s reopen; wc -l </var/log/nginx/access.log; ps -o user= -C nginx | sort | uniq -c")
    check("www-data" in log, f"the workers' user: {log}")


# --- PostgreSQL: asked with psql, as its own user ---


def sql(replica, *statements):
    words = [word for statement in statements for word in ("-c", statement)]
    return replica.run("psql", "-h", "/tmp", "-U", "postgres", "-Atq", "-v", "ON_ERROR_STOP=1", *words, "postgres")


def postgres_state(replica):
    return sql(
        replica,
        "SELECT count(*), sum(number), md5(string_agg(word, ',' ORDER BY number)) FROM facts",
        "SELECT word FROM notes ORDER BY id",
        "SELECT pid, state FROM pg_stat_activity WHERE application_name = 'keeper'",
    )


def postgres_change(replica, text):
    sql(
        replica,
        f"INSERT INTO notes (word) VALUES ('{text}')",
        f"UPDATE facts SET word = '{text}' WHERE number % 1000 = 7",
        f"CREATE TABLE {text} AS SELECT generate_series(1, 1000) n",
    )


def postgres_is_whole(original, restored):
    """Checkpoints of its own, vacuum, an index scan, new connections over TCP; and its processes are not root's."""
    for replica in (original, restored):
        word = sql(replica, "CHECKPOINT", "VACUUM ANALYZE", "SET enable_seqscan = off", "SELECT word FROM facts WHERE number = 12345")
        equal(word, hashlib.md5(b"12345").hexdigest(), "a row by its index")
        equal(replica.run("psql", "-h", "127.0.0.1", "-U", "postgres", "-Atc", "SELECT count(*) FROM notes", "postgres"), "3"
              if replica is original else "2", "rows that a client over TCP sees")  # fmt: skip
        equal(set(replica.run("ps", "-eo", "user=").split()), {"postgres"}, "the users of all processes")


globals().update(
    tests(
        [
            Program("node", ["node", "/app/server.js"], live=http_live, spec={"env": {"UV_USE_IO_URING": "0"}}),
            Program("redis", ["sh", "/app/redis.sh"], when=MARKED, state=redis_state, published=False,
                    change=lambda replica, text: redis(replica, "RPUSH", "notes", text), more=redis_persists),
            Program("nginx", ["sh", "/app/nginx.sh"], state=nginx_state, change=nginx_change, more=nginx_reloads),
            Program("java", ["java", "-Xmx128m", "/app/Server.java"], live=http_live),
            Program("postgresql", ["sh", "/app/postgres.sh"], when=MARKED, state=postgres_state, change=postgres_change, more=postgres_is_whole,
                    published=False, spec={"user": "postgres"}),
        ]
    )
)  # fmt: skip

if __name__ == "__main__":
    thawtest.main(globals())
