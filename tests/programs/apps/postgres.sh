# PostgreSQL, made from nothing, with rows, an index, and a client of its own that stays connected with a transaction open.
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/thaw PGHOST=/tmp PGUSER=postgres
initdb --auth trust --no-sync --no-locale --encoding UTF8 >/dev/null
echo "host all all all trust" >>"$PGDATA/pg_hba.conf"
postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c shared_buffers=16MB -c max_connections=20 &
until pg_isready -q; do sleep 0.05; done
psql -q -v ON_ERROR_STOP=1 postgres <<EOS
CREATE TABLE facts (number integer PRIMARY KEY, word text);
INSERT INTO facts SELECT n, md5(n::text) FROM generate_series(1, 20000) n;
CREATE TABLE notes (id serial, word text);
INSERT INTO notes (word) VALUES (md5(random()::text));
EOS
{ echo "SET application_name = 'keeper'; BEGIN; CREATE TEMP TABLE t AS SELECT 1;"; sleep 100000; } | psql -q postgres &
until [ "$(psql -At -c "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'keeper' AND state = 'idle in transaction'" postgres)" = 1 ]; do
  sleep 0.05
done
touch /run/thaw/ready
wait
