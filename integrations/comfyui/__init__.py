"""NSFW safety nodes for ComfyUI: copy or link this folder into ``custom_nodes``."""

import os as _os

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

try:
    from .extension import comfy_entrypoint
except Exception as error:
    # ComfyUI goes on without a folder that fails, and nothing would be guarded. As in enforce_settings.py, which may be
    # what fails.
    if _os.environ.get("NSFW_GUARD_ENFORCE", "").strip().lower() in ("", "0", "false", "no", "off"):
        raise
    raise SystemExit(
        f"NSFW_GUARD_ENFORCE is set, and the guard cannot be loaded: {type(error).__name__}: {error}. ComfyUI does not "
        "start without it. Mend this, or unset NSFW_GUARD_ENFORCE."
    ) from error
