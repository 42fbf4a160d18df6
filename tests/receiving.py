"""A server on this machine that is told of runs (log.notify)."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def refused(number):
    raise ValueError(f"{number} is no JSON")


class Receiving(BaseHTTPRequestHandler):
    """Answers with the next of the server's statuses; keeps what it was told."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.path, dict(self.headers), json.loads(body, parse_constant=refused)))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == "hang":
            self.server.free.wait(10)
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def receiving(*statuses):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiving)
    server.daemon_threads = True
    server.told, server.statuses, server.free = [], list(statuses), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/hook/SECRET"
    finally:
        server.free.set()
        server.shutdown()
        server.server_close()
