"""NSFW safety nodes for ComfyUI: copy or link this folder into ``custom_nodes``."""

from .extension import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
