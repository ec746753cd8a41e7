"""The embedded server in a thread, on free ports of this machine."""

import asyncio
import contextlib
import http.client
import json
import threading

from serving.server import Server, ServerConfig


@contextlib.contextmanager
def serve(model_dir, **settings):
    """Gives a started server; stops it at the end."""
    values = {"poll_secs": 0.05, "rest_port": 0, "grpc_port": 0, **settings}
    config = ServerConfig.parse({"model_dir": str(model_dir), **values})
    ready, holder = threading.Event(), {}

    async def body():
        server, stop = Server(config), asyncio.Event()
        try:
            await server.start()
        except BaseException as error:
            holder["error"] = error
            ready.set()
            return
        loop = asyncio.get_running_loop()
        holder.update(server=server, stop=stop, loop=loop)
        ready.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(body()))
    thread.start()
    assert ready.wait(60)
    if "error" in holder:
        thread.join()
        raise holder["error"]
    try:
        yield holder["server"]
    finally:
        holder["loop"].call_soon_threadsafe(holder["stop"].set)
        thread.join(60)
        assert not thread.is_alive()


def call(server, method, path, body=None):
    """Returns (status, decoded JSON or text) of one REST request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    with contextlib.closing(connection):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data)
        response = connection.getresponse()
        text = response.read().decode()
        is_json = response.headers["Content-Type"].startswith("application/json")
        return response.status, json.loads(text) if is_json else text
