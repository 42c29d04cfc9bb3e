"""A web server on this machine that misbehaves as asked."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """What is served, and what was asked for.

    Attributes:
        url: Address of the server.
        files: Content by path; other paths are answered with 404.
        content_types: By path; application/octet-stream otherwise.
        redirects: From path to path.
        statuses: Of the next requests of a path, each used once before the file is served.
        drops: Number of bytes after which the next responses of a path end, each used once.
        etags: Version by path.
        knows_ranges: Whether parts are served.
        requests: (path, Range header) of each request.
    """

    def __init__(self):
        self.url = ""
        self.files = {}
        self.content_types = {}
        self.redirects = {}
        self.statuses = {}
        self.drops = {}
        self.etags = {}
        self.knows_ranges = True
        self.requests = []

    @property
    def paths(self):
        return [path for path, _ in self.requests]


@contextmanager
def serve():
    """Runs a LocalServer until the block ends."""
    state = LocalServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, asked = self.path, self.headers.get("Range")
            state.requests.append((path, asked))
            if state.statuses.get(path):
                self.answer(state.statuses[path].pop(0))
            elif path in state.redirects:
                self.answer(302, {"Location": state.redirects[path]})
            elif path not in state.files:
                self.answer(404)
            else:
                self.file(path, asked)

        def file(self, path, asked):
            content, start, status = state.files[path], 0, 200
            headers = {"Content-Type": state.content_types.get(path, "application/octet-stream")}
            if path in state.etags:
                headers["ETag"] = state.etags[path]
            is_same = self.headers.get("If-Range") in (None, state.etags.get(path))
            if asked and state.knows_ranges and is_same:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(content):
                    self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            sent = body[: state.drops[path].pop(0)] if state.drops.get(path) else body
            self.answer(status, headers, sent, len(body))

        def answer(self, status, headers=(), body=b"", length=None):
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """Says nothing of clients that hang up on a page they did not ask for."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
