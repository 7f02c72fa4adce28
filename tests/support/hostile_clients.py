"""Clients that connect and say nothing, or a byte now and then, and come back when they are closed.

Run it as a program, with a port and the numbers of silent and of trickling clients. It prints a
line when all have connected once, and goes on until it is killed.
"""

import asyncio
import sys
from contextlib import suppress

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: "


async def client(port: int, delay: float, trickles: bool, connected: asyncio.Semaphore) -> None:
    """Connect over and over; each time that it works, the semaphore is released."""
    await asyncio.sleep(delay)
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            connected.release()
            try:
                writer.write(HEAD if trickles else b"")
                while trickles and not reader.at_eof():
                    writer.write(b"a")
                    await writer.drain()
                    await asyncio.sleep(0.5)
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.01)


async def attack(port: int, silent: int, trickling: int) -> None:
    """Let all clients connect, a little apart, and keep them at it."""
    connected = asyncio.Semaphore(0)
    clients = [
        asyncio.create_task(client(port, number / 1000, number >= silent, connected))
        for number in range(silent + trickling)
    ]
    for _ in clients:
        await connected.acquire()
    print("all have connected", flush=True)
    await asyncio.gather(*clients)


if __name__ == "__main__":
    asyncio.run(attack(*map(int, sys.argv[1:])))
