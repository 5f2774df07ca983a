"""What ComfyUI asks of the folder: its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import checkpoints, enforce, nodes_flow, nodes_image, nodes_save, nodes_setup, nodes_video

# Before the schemas are made: they list what is in it.
checkpoints.register_folder()


class NsfwGuardExtension(ComfyExtension):
    """The node pack."""

    async def on_load(self) -> None:
        """Guard every prompt, if the operator says so."""
        enforce.install_if_asked()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        files = (nodes_setup, nodes_image, nodes_flow, nodes_video, nodes_save, enforce)
        return [node for file in files for node in file.NODES]


async def comfy_entrypoint() -> NsfwGuardExtension:
    """Called by ComfyUI when it starts."""
    return NsfwGuardExtension()
