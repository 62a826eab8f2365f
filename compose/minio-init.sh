#!/bin/sh
# The bucket of the lake, and a key that may use this bucket and nothing else. Running it again changes nothing.
set -eu
mc alias set lake "$MINIO_URL" "$MINIO_ROOT_USER" "$MINIO_ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing lake/lakehouse
mc admin user add lake "$LAKE_S3_ACCESS_KEY_ID" "$LAKE_S3_SECRET_ACCESS_KEY"
mc admin policy create lake lakehouse /compose/minio-policy.json
mc admin policy attach lake lakehouse --user "$LAKE_S3_ACCESS_KEY_ID" \
  || mc admin user info lake "$LAKE_S3_ACCESS_KEY_ID" | grep lakehouse
