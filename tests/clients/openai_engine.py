"""An OpenAI-compatible engine that is not ours, as small as one can be: a real server on a real port, with a slow start,
a health path, streams, and the errors that its options and prompts ask for. Its text is a count, so that a test knows
what was lost. It ends at once on SIGTERM, as llama-server does: whoever stops it must wait for its streams."""

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--name", default="")
parser.add_argument("--start-ms", type=int, default=300, help="time until it is healthy; below 0 it never is")
parser.add_argument("--token-ms", type=float, default=5)
parser.add_argument("--slots", type=int, default=4)
parser.add_argument("--exit", type=int, help="ends at once with this code")
parser.add_argument("--state", help="only to be found by, among other processes")
options = parser.parse_args()
if options.exit is not None:
    raise SystemExit(options.exit)
with open(options.model, "rb") as checkpoint:
    checkpoint.read(1)

ready_at = time.monotonic() + options.start_ms / 1e3
slots = threading.Semaphore(options.slots)


def is_ready():
    return options.start_ms >= 0 and time.monotonic() >= ready_at


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, message):
        self.answer(status, {"error": {"message": message, "type": "x", "param": None, "code": status}})

    def do_GET(self):
        if self.path != "/health":
            return self.error(404, "no such path")
        self.answer(200 if is_ready() else 503, {"status": "ok" if is_ready() else "loading"})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not is_ready():
            return self.error(503, "loading")
        if self.path == "/v1/embeddings":
            row = {"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}
            usage = {"prompt_tokens": 3, "total_tokens": 3}
            return self.answer(200, {"object": "list", "data": [row], "model": request["model"], "usage": usage})
        prompt = request.get("prompt") or request["messages"][-1]["content"]
        if prompt.startswith("error "):
            return self.error(int(prompt.split()[1]), f"you asked for {prompt}")
        with slots:
            self.generate(request, len(prompt.split()))

    def generate(self, request, prompt_tokens):
        is_chat = self.path == "/v1/chat/completions"
        count = request.get("max_tokens", 16)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        if not request.get("stream"):
            time.sleep(count * options.token_ms / 1e3)
            text = "".join(f" {index}" for index in range(count))
            choice = {"index": 0, "finish_reason": "length"}
            choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            kind = "chat.completion" if is_chat else "text_completion"
            answer = {"id": "x", "object": kind, "model": request["model"], "choices": [choice], "usage": usage}
            return self.answer(200, answer)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        if is_chat:
            self.event(request, kind, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for index in range(count):
            time.sleep(options.token_ms / 1e3)
            part = {"delta": {"content": f" {index}"}} if is_chat else {"text": f" {index}"}
            self.event(request, kind, [{"index": 0, **part, "finish_reason": None}])
        part = {"delta": {}} if is_chat else {"text": ""}
        self.event(request, kind, [{"index": 0, **part, "finish_reason": "length"}])
        if (request.get("stream_options") or {}).get("include_usage"):
            self.event(request, kind, [], usage)
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def event(self, request, kind, choices, usage=None):
        event = {"id": "x", "object": kind, "model": request["model"], "choices": choices}
        self.chunk("data: " + json.dumps(event | ({"usage": usage} if usage else {})) + "\n\n")

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", options.port), Engine).serve_forever()
