"""What Superset needs of the lakehouse: a metadata database, the reader's connection, an environment to run in."""
