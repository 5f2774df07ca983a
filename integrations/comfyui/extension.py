"""What ComfyUI asks of the folder: its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import checkpoints, enforce, nodes_flow, nodes_image, nodes_save, nodes_setup, nodes_video
from .enforce_settings import ENFORCE, enforced

# Before the schemas are made: they list what is in it.
checkpoints.register_folder()


class NsfwGuardExtension(ComfyExtension):
    """The node pack."""

    async def on_load(self) -> None:
        """Guard every prompt, if the operator says so; without that, ComfyUI does not start then."""
        try:
            enforce.install_if_asked()
            self._nodes()
        except Exception as error:
            if not enforced():
                raise
            raise SystemExit(
                f"{ENFORCE} is set, and prompts cannot be guarded: {error} ComfyUI does not start without it. "
                f"Mend this, or unset {ENFORCE}."
            ) from error

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        return self._nodes()

    def _nodes(self) -> list[type[io.ComfyNode]]:
        files = (nodes_setup, nodes_image, nodes_flow, nodes_video, nodes_save, enforce)
        found = [node for file in files for node in file.NODES]
        for node in found:
            node.define_schema()  # what is wrong with one shows here, and not later
        return found


async def comfy_entrypoint() -> NsfwGuardExtension:
    """Called by ComfyUI when it starts."""
    return NsfwGuardExtension()
