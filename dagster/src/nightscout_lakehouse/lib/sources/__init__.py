"""Where documents come from besides a Nightscout server: files that a person drops, and whatever you add."""
