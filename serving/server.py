"""An embedded model server for development and tests.

It speaks TF Serving's REST and gRPC interfaces, so that a client written against it
runs unchanged against TF Serving, which is what production should use (`deploy/`).
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import pathlib
import signal
import sys

import grpc
from absl import logging
from aiohttp import web
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from features.config import Config
from serving.grpc_service import ModelService, PredictionService
from serving.model_store import ModelStore
from serving.monitoring import Monitoring
from serving.rest import RestApp

EPILOG = """examples:
  python -m serving.server --model_dir export/ranker
  curl localhost:8501/v1/models/ranker
  curl localhost:8501/v1/models/ranker/metadata
"""


class ServerConfig(Config):
    """Settings of the embedded server; ports 0 take a free one."""

    model_dir: str
    name: str = ""  # default: the folder's name
    host: str = "127.0.0.1"
    rest_port: int = 8501
    grpc_port: int = 8500
    poll_secs: float = 2.0
    timeout_secs: float = 10.0
    max_request_bytes: int = 16 * 2**20
    threads: int = 2
    keep_versions: int = 1


class Server:
    """Both interfaces over one model store.

    Attributes:
      rest_port, grpc_port: The ports it listens on, once started.
      store: The loaded versions.
    """

    def __init__(self, config: ServerConfig):
        self._config = config
        self._monitoring = Monitoring()
        name = config.name or pathlib.Path(config.model_dir).resolve().name
        self.store = ModelStore(
            name,
            config.model_dir,
            keep_versions=config.keep_versions,
            on_swap=self._monitoring.swapped,
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(config.threads, "predict")
        self._rest = RestApp(
            self.store,
            self._monitoring,
            self._pool,
            max_request_bytes=config.max_request_bytes,
            timeout_secs=config.timeout_secs,
        )
        self.rest_port = self.grpc_port = 0

    async def start(self) -> None:
        """Loads the newest version and opens both ports.

        Raises:
          FileNotFoundError: When the folder holds no version.
          OSError: When a port is taken.
        """
        self.store.refresh()
        if not self.store.is_ready():
            raise FileNotFoundError(
                "server.model_dir must hold a loadable version folder such as 1/; "
                f"{self._config.model_dir} has none. Run python -m serving.export."
            )
        self._runner = web.AppRunner(self._rest.app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._config.host, self._config.rest_port)
        await site.start()
        self.rest_port = self._runner.addresses[0][1]
        self._start_grpc()
        self._watcher = asyncio.create_task(self._watch())

    def _start_grpc(self) -> None:
        limit = self._config.max_request_bytes
        self._grpc = grpc.server(
            concurrent.futures.ThreadPoolExecutor(self._config.threads * 2, "grpc"),
            options=[("grpc.max_receive_message_length", limit)],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(
                self.store,
                self._monitoring,
                self._pool,
                timeout_secs=self._config.timeout_secs,
            ),
            self._grpc,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self.store), self._grpc
        )
        address = f"{self._config.host}:{self._config.grpc_port}"
        self.grpc_port = self._grpc.add_insecure_port(address)
        if self.grpc_port == 0:
            raise OSError(f"server.grpc_port must be free; {address} is not.")
        self._grpc.start()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._config.poll_secs)
            await loop.run_in_executor(None, self.store.refresh)

    async def stop(self) -> None:
        """Closes both ports after the requests under way."""
        self._watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher
        self._grpc.stop(grace=5)
        await self._runner.cleanup()
        self._pool.shutdown(wait=True)


async def _serve(config: ServerConfig) -> None:
    server = Server(config)
    await server.start()
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    print(
        f"serving {server.store.name}: REST on {config.host}:{server.rest_port}, gRPC "
        f"on {config.host}:{server.grpc_port}",
        flush=True,
    )
    await done.wait()
    await server.stop()


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, field in ServerConfig.model_fields.items():
        parser.add_argument(
            f"--{name}",
            required=field.is_required(),
            type=field.annotation,  # type: ignore[arg-type]
            default=None if field.is_required() else field.default,
            help=None if field.is_required() else f"default: {field.default!r}",
        )
    logging.set_verbosity(logging.INFO)
    try:
        asyncio.run(_serve(ServerConfig.parse(vars(parser.parse_args(argv)))))
    except (ValueError, OSError) as error:
        print(f"server failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
