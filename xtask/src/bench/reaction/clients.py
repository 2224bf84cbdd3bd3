"""Open-loop clients: requests leave when a Poisson process says so, whatever became of the ones before, each on a
connection of its own. The rate makes a step. Arguments: port, model, rate before and after the step (1/s), seconds
before and after it, prompt and output tokens, seed. Prints one line of JSON: when the step was, when the last moment
was, and when each connect began (the SYN leaves in it), CLOCK_MONOTONIC ns, with the status of each answer (0: none)."""
import asyncio, json, random, socket, sys, time

port, model = int(sys.argv[1]), sys.argv[2]
before, after, before_s, after_s = map(float, sys.argv[3:7])
prompt_tokens, output_tokens, seed = map(int, sys.argv[7:10])
draw = random.Random(seed)


def request():
    prompt = [draw.randrange(1000, 40000) for _ in range(prompt_tokens)]
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": output_tokens, "temperature": 0, "stream": True,
                       "ignore_eos": True}).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body)


def schedule():
    """Seconds from the start at which requests leave."""
    at = 0.0
    while True:
        gap = draw.expovariate(1.0)
        # The unit-rate process in the time that the rates stretch: what is left of a gap at the step goes by the new rate.
        if at < before_s and at + gap / before > before_s:
            gap -= (before_s - at) * before
            at = before_s
        at += gap / (before if at < before_s else after)
        if at >= before_s + after_s:
            return
        yield at


async def one(message, sent):
    loop, sock = asyncio.get_running_loop(), socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent[0] = time.monotonic_ns()
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, message)
        first = await loop.sock_recv(sock, 65536)
        sent[1] = int(first[9:12] or b"0")
        while await loop.sock_recv(sock, 65536):
            pass
    except (OSError, ValueError):
        pass
    finally:
        sock.close()


async def main():
    planned = [(at, request()) for at in schedule()]
    begun, sent, tasks = time.monotonic_ns(), [], []
    for at, message in planned:
        await asyncio.sleep(max(0.0, at - (time.monotonic_ns() - begun) / 1e9))
        sent.append([0, 0])
        tasks.append(asyncio.create_task(one(message, sent[-1])))
    end_ns = begun + int((before_s + after_s) * 1e9)
    await asyncio.sleep(max(0.0, (end_ns - time.monotonic_ns()) / 1e9))
    [task.cancel() for task in tasks]
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"step_ns": begun + int(before_s * 1e9), "end_ns": end_ns, "sent": sorted(sent)}))


asyncio.run(main())
