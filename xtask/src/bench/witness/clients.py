"""Streaming clients that note when the kernel received what they read (SO_TIMESTAMPNS, so that no scheduling of this
program is in the figure). Arguments: port, model, clients, requests of each, output tokens. Prints one line of JSON for
each request: its own port, and each read as [received ns, bytes so far]; where its first byte and first token end.
Times are CLOCK_MONOTONIC."""
import json, random, socket, struct, sys, threading, time

SO_TIMESTAMPNS = 35
port, model, clients, requests, tokens = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
lock = threading.Lock()


def real_to_monotonic():
    """Offset of the two clocks, from the closest of some pairs of readings."""
    best = None
    for _ in range(50):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2 - real)
    return best[1]


def is_token(line):
    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
        return False
    choices = json.loads(line[5:]).get("choices") or [{}]
    choice = choices[0]
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def first_token_end(raw):
    """Bytes of the answer up to the end of the first event that is a token, over chunk boundaries."""
    head = raw.index(b"\r\n\r\n") + 4
    body, ends, at = b"", [], head
    chunked = b"chunked" in raw[:head].lower()
    while chunked and at < len(raw):
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line].split(b";")[0], 16)
        if size == 0:
            break
        ends.append((len(body), line + 2))
        body += raw[line + 2:line + 2 + size]
        at = line + 2 + size + 2
    if not chunked:
        body, ends = raw[head:], [(0, head)]
    start = 0
    for line in body.split(b"\n"):
        if is_token(line):
            stop = start + len(line)
            begin, offset = [pair for pair in ends if pair[0] < stop][-1]
            return stop - begin + offset
        start += len(line) + 1
    return 0


def run(number):
    for _ in range(requests):
        prompt = [random.randrange(1000, 40000) for _ in range(64)]
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                           "ignore_eos": True, "cache_prompt": False}).encode()
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        own = sock.getsockname()[1]
        sent_ns = time.monotonic_ns()
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        raw, reads = b"", []
        while True:
            data, ancillary, _, _ = sock.recvmsg(1 << 16, 256)
            if not data:
                break
            raw += data
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, ns = struct.unpack("qq", value[:16])
                    reads.append([seconds * 1000000000 + ns, len(raw)])
        sock.close()
        offset = real_to_monotonic()
        reads = [[at + offset, end] for at, end in reads]
        with lock:
            print(json.dumps({"port": own, "sent_ns": sent_ns, "reads": reads, "bytes": len(raw), "first_token_end": first_token_end(raw),
                              "status": int(raw[9:12] or b"0")}), flush=True)


threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
