"""A TLS session between a server and a client, neither of which needs a certificate. Prints the server's port, waits
for a line, and prints how many bytes the client's end of the connection sent and received."""

import socket
import ssl
import sys
import threading


def context(side):
    made = ssl.SSLContext(side)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return made


def serve(listener):
    stream = context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(listener.accept()[0], server_side=True)
    stream.recv(1000)
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    stream.close()


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
threading.Thread(target=serve, args=(listener,)).start()
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
session = context(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(incoming, outgoing)
raw = socket.create_connection(listener.getsockname())
sent = received = 0


def do(step, *arguments):
    global sent, received
    while True:
        try:
            result = step(*arguments)
        except ssl.SSLWantReadError:
            result = None
        out = outgoing.read()
        raw.sendall(out)
        sent += len(out)
        if result is not None or step == session.do_handshake and session.cipher():
            return result
        data = raw.recv(65536)
        received += len(data)
        incoming.write(data)


do(session.do_handshake)
do(session.write, b"GET / HTTP/1.1\r\n\r\n")
assert do(session.read, 1000).endswith(b"ok")
while data := raw.recv(65536):
    received += len(data)
print(sent, received)
