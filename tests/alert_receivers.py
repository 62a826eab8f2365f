"""Real services that alerts are sent to: an HTTP server that takes JSON, and an SMTP server."""

import json
import threading
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

SECRET = "sEcr3t-t0ken-0123456789"


class HttpReceiver:
    """Takes what is posted; answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.received: list[dict[str, Any]] = []
        # Set them to be told of an arrival, and to hold back the answer.
        self.has_arrived: threading.Event | None = None
        self.may_answer: threading.Event | None = None
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if receiver.status == 200:
                    receiver.received.append(body)
                if receiver.has_arrived is not None:
                    receiver.has_arrived.set()
                if receiver.may_answer is not None:
                    receiver.may_answer.wait(180)
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                if 300 <= receiver.status < 400:
                    self.send_header("Location", f"{receiver.address}/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"json://user:{SECRET}@127.0.0.1:{self._http.server_port}/hook/{SECRET}?+X-Key={SECRET}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def titles(self) -> list[str]:
        return [str(each["title"]) for each in self.received]


class MailReceiver:
    """Takes mails of who logs in with the secret."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self._controller = _Controller(
            self, hostname="127.0.0.1", port=0, ready_timeout=60, auth_require_tls=False, authenticator=_login
        )

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._controller.stop()

    def url(self, password: str = SECRET) -> str:
        port = self._controller.server.sockets[0].getsockname()[1]
        return f"mailto://guard:{password}@127.0.0.1:{port}?from=alerts@example.org&to=parent@example.org&mode=insecure"

    @property
    def subjects(self) -> list[str]:
        return [str(make_header(decode_header(mail["Subject"]))) for mail in self.mails]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if not session.authenticated:
            return "530 Authentication required"
        self.mails.append(message_from_bytes(envelope.content or b""))
        return "250 OK"


class _Controller(Controller):
    def _trigger_server(self) -> None:
        # A free port is known only once the server listens; the base class would connect to port 0.
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def _login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
    is_right = isinstance(data, LoginPassword) and data.password == SECRET.encode()
    return AuthResult(success=is_right, handled=False)
