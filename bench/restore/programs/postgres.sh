# PostgreSQL whose shared buffers, $1 MiB, are full of rows.
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/bench PGHOST=/tmp PGUSER=postgres
initdb --auth trust --no-sync --no-locale --encoding UTF8 >/dev/null
echo "host all all all trust" >>$PGDATA/pg_hba.conf
postgres -c listen_addresses='*' -c unix_socket_directories=/tmp -c shared_buffers=${1}MB -c max_connections=20 -c fsync=off -c max_wal_size=8GB \
  -c autovacuum=off &
until pg_isready -q; do sleep 0.05; done
# A row of 1000 bytes each; 8 of them fill a page.
psql -q -v ON_ERROR_STOP=1 postgres <<EOS
CREATE TABLE facts (number integer, word text);
ALTER TABLE facts ALTER COLUMN word SET STORAGE PLAIN;
INSERT INTO facts SELECT n, repeat(md5(n::text), 31) FROM generate_series(1, $1 * 900) n;
EOS
touch /run/thaw/ready
wait
