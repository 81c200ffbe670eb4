# Redis with data in memory and in an append-only file.
mkdir -p /data
redis-server --dir /data --appendonly yes --protected-mode no --bind 0.0.0.0 --loglevel warning &
until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.05; done
seq 20000 | sed 's/.*/SET key:& value-&/' | redis-cli --pipe >/dev/null
redis-cli <<EOS >/dev/null
SET token $(od -An -N8 -tx8 /dev/urandom)
SET short-lived yes EX 86400
HSET hash a 1 b 2
ZADD sorted 1 one 2 two
XADD stream * field value
EOS
touch /run/thaw/ready
wait
