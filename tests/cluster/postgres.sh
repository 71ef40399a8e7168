#!/bin/sh
# Makes a database of POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB if there is none yet, and serves it.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data/db # below a volume's folder, for that one is not ours to chmod
if [ ! -s "$data/PG_VERSION" ]; then
    umask 077
    rm -rf "$data.new"
    printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password
    "$bin/initdb" --pgdata="$data.new" --username="$POSTGRES_USER" --pwfile=/tmp/password --encoding=UTF8 \
        --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256 --no-sync
    rm /tmp/password
    echo "host all all all scram-sha-256" >>"$data.new/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | "$bin/postgres" --single -D "$data.new" postgres
    mv "$data.new" "$data" # one that was not finished is not taken for one
fi
exec "$bin/postgres" -D "$data" -c listen_addresses=0.0.0.0 -c unix_socket_directories=/tmp
