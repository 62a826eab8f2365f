"""Taking care of what is kept: backup and restore, export, forgetting a person, compaction."""
