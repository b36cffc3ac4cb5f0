"""A camera on loopback: H.264 over RTSP (RFC 2326), RTP interleaved on the same connection (RFC 6184)."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import av
import numpy as np

_PAYLOAD = 96
_LARGEST = 1200  # bytes of an RTP payload
_SDP = f"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP {_PAYLOAD}
a=rtpmap:{_PAYLOAD} H264/90000
a=fmtp:{_PAYLOAD} packetization-mode=1
a=control:track
""".replace("\n", "\r\n")


@contextmanager
def camera(images: list[np.ndarray], rate: int = 10, skip: int = 0, lost: int = -1) -> Iterator[str]:
    """The URL of a stream that shows `images` at `rate` a second to each client, in real time, and then hangs up.

    skip: frames that were shown before the client came; lost: of which of the others a packet gets lost on the way.
    """
    units = _encode(images, rate)[skip:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, units, rate, lost), daemon=True).start()
        yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/stream"


def _encode(images: list[np.ndarray], rate: int) -> list[bytes]:
    """The NAL units of each frame, in Annex B, parameter sets before every keyframe."""
    height, width = images[0].shape[:2]
    codec = av.CodecContext.create("libx264", "w")
    codec.width, codec.height, codec.pix_fmt, codec.framerate = width, height, "yuv420p", rate
    codec.options = {"tune": "zerolatency", "preset": "ultrafast", "g": str(rate)}
    packets = [packet for image in images for packet in codec.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))]
    return [bytes(packet) for packet in [*packets, *codec.encode(None)]]


def _accept(server: socket.socket, units: list[bytes], rate: int, lost: int) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, units, rate, lost), daemon=True).start()


def _serve(client: socket.socket, units: list[bytes], rate: int, lost: int) -> None:
    with client:
        try:
            for method, number in _requests(client):
                headers = {
                    "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
                    "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n",
                    "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                }.get(method, "Session: 1\r\n")
                body = _SDP if method == "DESCRIBE" else ""
                client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{headers}\r\n{body}".encode())
                if method == "PLAY":
                    _play(client, units, rate, lost)
                    return
        except OSError:
            pass  # the client is gone


def _requests(client: socket.socket) -> Iterable[tuple[str, str]]:
    pending = b""
    while received := client.recv(4096):
        pending += received
        while b"\r\n\r\n" in pending:
            request, _, pending = pending.partition(b"\r\n\r\n")
            text = request.decode()
            yield text.split()[0], re.search(r"CSeq: *(\d+)", text, re.IGNORECASE)[1]


def _play(client: socket.socket, units: list[bytes], rate: int, lost: int) -> None:
    start, sequence = time.monotonic(), 0
    for index, unit in enumerate(units):
        time.sleep(max(0.0, start + index / rate - time.monotonic()))
        payloads = [part for nal in re.split(b"\x00\x00\x00?\x01", unit) if nal for part in _fragments(nal)]
        for at, payload in enumerate(payloads):
            last = at == len(payloads) - 1
            header = struct.pack(">BBHII", 0x80, _PAYLOAD | last << 7, sequence & 0xFFFF, index * 90000 // rate, 1)
            if index != lost or at != max(0, len(payloads) - 2):
                client.sendall(b"$\x00" + struct.pack(">H", len(header) + len(payload)) + header + payload)
            sequence += 1


def _fragments(nal: bytes) -> list[bytes]:
    """A NAL unit as it is, or where it is too long as fragmentation units (FU-A)."""
    if len(nal) <= _LARGEST:
        return [nal]
    body = nal[1:]
    pieces = [body[at : at + _LARGEST] for at in range(0, len(body), _LARGEST)]
    indicator, kind = nal[0] & 0xE0 | 28, nal[0] & 0x1F
    flags = [0x80 if at == 0 else 0x40 if at == len(pieces) - 1 else 0 for at in range(len(pieces))]
    return [bytes([indicator, flag | kind]) + piece for flag, piece in zip(flags, pieces, strict=True)]
