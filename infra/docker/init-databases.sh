#!/bin/sh
# Run once by the PostgreSQL image on an empty data folder: one role and one database for each server, and no access across.
set -eu
for name in prefect mlflow; do
    psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --set "name=$name" \
        --set "password=$(cat "/run/secrets/${name}_database_password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
