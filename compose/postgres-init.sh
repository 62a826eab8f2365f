#!/bin/sh
# Roles and databases of every service, each with a password of its own; runs once, on an empty data volume.
set -eu
psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 --quiet \
  --set lakehouse="$LAKEHOUSE_POSTGRES_PASSWORD" --set reader="$BI_READER_PASSWORD" \
  --set dagster="$DAGSTER_POSTGRES_PASSWORD" --set superset="$SUPERSET_POSTGRES_PASSWORD" \
  --set marquez="$MARQUEZ_POSTGRES_PASSWORD" <<'SQL'
set password_encryption = 'scram-sha-256';

create role lakehouse login password :'lakehouse';
create role dagster login password :'dagster';
create role superset login password :'superset';
create role marquez login password :'marquez';

-- For the dashboards: the pipeline says what it may read, and cannot log in as it.
create role bi_reader login noinherit password :'reader';
grant bi_reader to lakehouse with admin true, inherit false, set true;

create database lakehouse owner lakehouse;
create database dagster owner dagster;
create database superset owner superset;
create database marquez owner marquez;

-- Each service sees its own database, and the dashboards the marts.
revoke all on database lakehouse, dagster, superset, marquez, postgres from public;
grant connect on database lakehouse to bi_reader;
SQL
