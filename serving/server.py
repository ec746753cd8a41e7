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
from pydantic import Field
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from features.config import Config
from serving.grpc_service import ModelService, PredictionService
from serving.model_store import ModelStore
from serving.monitoring import Monitoring
from serving.rest import RestApp

EPILOG = """examples:
  python -m serving.server --model_dir export/ranker
  python -m serving.server --model_dir export/ranker --rest_port 0 --grpc_port 0
  curl localhost:8501/v1/models/ranker
  curl localhost:8501/v1/models/ranker/metadata
  curl localhost:8501/health
  curl localhost:8501/monitoring/prometheus/metrics
"""


class ServerConfig(Config):
    """Settings of the embedded server."""

    model_dir: str = Field(description="folder of version folders, as export writes it")
    name: str = Field("", description="model name in URLs; '' takes the folder's")
    host: str = Field("127.0.0.1", description="address to listen on")
    rest_port: int = Field(8501, ge=0, le=65535, description="0 takes a free one")
    grpc_port: int = Field(8500, ge=0, le=65535, description="0 takes a free one")
    poll_secs: float = Field(
        2.0, gt=0, description="seconds between two looks for a new version"
    )
    timeout_secs: float = Field(
        10.0, gt=0, description="seconds until a request is given up"
    )
    max_request_bytes: int = Field(
        16 * 2**20, ge=1, description="larger requests are refused"
    )
    threads: int = Field(2, ge=1, description="requests scored at once")
    keep_versions: int = Field(1, ge=1, description="newest versions kept loaded")


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
          FileNotFoundError: When no version can be loaded; says why.
          OSError: When a port is taken.
        """
        self.store.refresh()
        if not self.store.is_ready():
            failed = self.store.status(self.store.name)
            reasons = "".join(f"; {v}: {text}" for v, (_, text) in failed.items())
            raise FileNotFoundError(
                "server.model_dir must hold a loadable version folder such as 1/; got "
                f"{self._config.model_dir} without one{reasons}. "
                "Run python -m serving.export."
            )
        self._runner = web.AppRunner(self._rest.app, access_log=None)
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._config.host, self._config.rest_port)
            await site.start()
            self.rest_port = self._runner.addresses[0][1]
            self._start_grpc()
        except BaseException:
            await self._runner.cleanup()
            raise
        self._watcher = asyncio.create_task(self._watch())

    def _start_grpc(self) -> None:
        self._grpc = grpc.server(
            concurrent.futures.ThreadPoolExecutor(self._config.threads * 2, "grpc"),
            options=[
                ("grpc.max_receive_message_length", self._config.max_request_bytes),
                # Else a second server on the port would start, and share its calls.
                ("grpc.so_reuseport", 0),
            ],
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
        try:
            self.grpc_port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"server.grpc_port must be free; {address} is not. Stop the other "
                "server, or choose another --grpc_port."
            ) from error
        self._grpc.start()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._config.poll_secs)
            try:
                await loop.run_in_executor(None, self.store.refresh)
            except OSError as error:  # a share that is away for a while
                logging.error("Cannot read %s: %s", self._config.model_dir, error)

    async def stop(self) -> None:
        """Closes both ports after the requests under way."""
        self._watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watcher
        await asyncio.to_thread(self._grpc.stop(grace=5).wait)
        await self._runner.cleanup()
        self._pool.shutdown(wait=True)


async def _serve(config: ServerConfig) -> None:
    server = Server(config)
    await server.start()
    done = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    name = server.store.name
    print(
        f"serving {name} version {server.store.get(name).version}: REST on "
        f"{config.host}:{server.rest_port}, gRPC on {config.host}:{server.grpc_port}",
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
        required = field.is_required()
        parser.add_argument(
            f"--{name}",
            required=required,
            type=field.annotation,  # type: ignore[arg-type]
            default=None if required else field.default,
            help=str(field.description) + ("" if required else "; default %(default)r"),
        )
    args = parser.parse_args(argv)
    logging.set_verbosity(logging.INFO)
    try:
        asyncio.run(_serve(ServerConfig.parse(vars(args))))
    except (ValueError, OSError) as error:
        print(f"server failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
