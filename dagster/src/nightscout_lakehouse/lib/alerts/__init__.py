"""Alerts: who is told what, when, and what is remembered of it.

`rules` says what counts, `engine` decides (pure), `wording` writes, `store` remembers, `targets` delivers,
`live_readings` looks at a server, and `watch` does all of it once.
"""
