"""An OpenAI-like server that knows nothing of Foreshock: `server.py SLOTS` prints its port, then streams 12 tokens for
each request to /v1/completions, SLOTS at a time; /busy answers 503."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

slots = threading.Semaphore(int(sys.argv[1]))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def plain(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.plain(200, b"ok")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/busy":
            return self.plain(503, b"busy")
        with slots:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            time.sleep(0.02)
            for _ in range(12):
                self.event('{"choices":[{"index":0,"text":" a","finish_reason":null}]}')
                time.sleep(0.01)
            self.event('{"choices":[{"index":0,"text":"","finish_reason":"length"}]}')
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

    def event(self, data):
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
