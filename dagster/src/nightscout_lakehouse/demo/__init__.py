"""A made-up person behind a server that answers as Nightscout does: for trying out, and for tests over real HTTP."""

from nightscout_lakehouse.demo.person import Person
from nightscout_lakehouse.demo.server import DemoOptions, DemoServer, create_app, serve_forever
from nightscout_lakehouse.demo.store import DemoStore
from nightscout_lakehouse.demo.therapy import Therapy

__all__ = ["DemoOptions", "DemoServer", "DemoStore", "Person", "Therapy", "create_app", "serve_forever"]
