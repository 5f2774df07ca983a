"""A real ComfyUI on loopback, driven through its HTTP API."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PACK = ROOT / "integrations" / "comfyui"
DEMO = ROOT / "nsfw_guard" / "demo" / "models" / "classifier"


class Refused(Exception):
    """The server did not take a prompt."""


class Server:
    """One ComfyUI process with a base directory of its own.

    Args:
        base: An empty folder.
        env: More environment variables.
        checkpoint: Whether the demo's classifier lies in ``models/nsfw_guard``, as ``shapes/model.safetensors``.
        packs: Folders of other nodes.
    """

    def __init__(
        self, base: Path, *, env: dict[str, str] | None = None, checkpoint: bool = True, packs: tuple[Path, ...] = ()
    ) -> None:
        self.base = base
        for name in ("custom_nodes", "models/nsfw_guard", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "nsfw_guard").symlink_to(PACK)
        for pack in packs:
            (base / "custom_nodes" / pack.name).symlink_to(pack)
        if checkpoint:
            shapes = base / "models" / "nsfw_guard" / "shapes"
            shutil.copytree(DEMO, shapes)
            (shapes / "nsfw_guard.toml").write_text('card = "demo"\n', encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        comfyui = Path(os.environ["COMFYUI_DIR"])
        command = [os.environ["COMFYUI_PYTHON"], str(comfyui / "main.py"), "--cpu", "--disable-api-nodes"]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(base)]
        command += ["--database-url", "sqlite:///:memory:"]
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        settings = {**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", **(env or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=base, env=settings, stdout=log, stderr=log)
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise RuntimeError(f"ComfyUI ended:\n{self.log.read_text(errors='replace')[-4000:]}") from None
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI does not answer:\n{self.log.read_text(errors='replace')[-4000:]}")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None

    def upload(self, name: str, image: np.ndarray) -> str:
        """Put an 8-bit picture into the input folder; returns its name there."""
        Image.fromarray(image).save(self.base / "input" / name)
        return name

    def submit(self, prompt: dict[str, Any], **more: Any) -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex, **more})["prompt_id"]

    def run(self, prompt: dict[str, Any], **more: Any) -> Run:
        """Run a prompt to its end."""
        return self.finished(self.submit(prompt, **more))

    def watched(self, prompt: dict[str, Any]) -> tuple[Run, list[str]]:
        """Run a prompt to its end; returns the nodes that were executed too."""
        with self.listening() as listener:
            prompt_id = self.submit(prompt, client_id=listener.client_id)
            said = listener.until_the_end()
        return self.finished(prompt_id), [data["node"] for kind, data in said if kind == "executing"]

    def finished(self, prompt_id: str) -> Run:
        for _ in range(1200):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return Run(self, history[prompt_id])
            time.sleep(0.1)
        raise RuntimeError("The prompt does not end.")

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Listen on the websocket, with a client id of its own."""
        from websockets.sync.client import connect

        with connect(f"ws://127.0.0.1:{self.port}/ws?clientId={(client_id := uuid.uuid4().hex)}") as socket:
            yield Listener(socket, client_id)

    def picture(self, entry: dict[str, str]) -> np.ndarray:
        with self.open(entry) as picture:
            return np.asarray(picture)

    def open(self, entry: dict[str, str]) -> Image.Image:
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(entry)}", timeout=60) as answer:
            return Image.open(io.BytesIO(answer.read()))


class Listener:
    """What the server says while a prompt runs."""

    def __init__(self, socket: Any, client_id: str) -> None:
        self._socket, self.client_id = socket, client_id

    def wait_for(self, kind: str, wanted: Callable[[Any], bool]) -> Any:
        """The data of the first message of this kind that is wanted."""
        return next(data for said, data in self._messages() if said == kind and wanted(data))

    def until_the_end(self) -> list[tuple[str, Any]]:
        """All messages until the prompt is over."""
        said = []
        for kind, data in self._messages():
            said.append((kind, data))
            if kind == "executing" and data["node"] is None:
                break
        return said

    def _messages(self) -> Iterator[tuple[str, Any]]:
        while True:
            message = self._socket.recv(timeout=120)
            if isinstance(message, str):
                said = json.loads(message)
                yield said["type"], said["data"]


class Run:
    """What a prompt left in the history."""

    def __init__(self, server: Server, history: dict[str, Any]) -> None:
        self.server, self.outputs, self.status = server, history["outputs"], history["status"]

    @property
    def succeeded(self) -> bool:
        return self.status["status_str"] == "success"

    @property
    def error(self) -> str:
        return next(
            (data.get("exception_message", "") for kind, data in self.status["messages"] if kind == "execution_error"),
            "",
        )

    @property
    def cached(self) -> set[str]:
        """The nodes that were taken from the cache: they ran in an earlier prompt, and did not run in this one."""
        return {node for kind, data in self.status["messages"] if kind == "execution_cached" for node in data["nodes"]}

    @property
    def ran(self) -> set[str]:
        """The nodes with something to show that were not taken from the cache."""
        return set(self.outputs) - self.cached

    def report(self, node: str) -> Any:
        return json.loads(self.outputs[node]["nsfw_guard"][0])

    def pictures(self, node: str) -> list[np.ndarray]:
        return [self.server.picture(entry) for entry in self.outputs.get(node, {}).get("images", [])]
