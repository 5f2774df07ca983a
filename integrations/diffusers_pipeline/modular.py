"""Modular pipelines: the guarded call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nsfw_guard.errors import SettingError

from .pipeline import device_of, look, report
from .record import Passed, Record, recording
from .settings import Attachment

OUTPUTS = {"images": False, "videos": True}  # name → whether they are clips


class GuardedModularPipeline:
    """Mixed into the class of a modular pipeline; nothing that the guard has not seen leaves a call."""

    _nsfw_guard: Attachment

    def __call__(self, state: Any = None, output: str | list[str] | None = None, **kwargs: Any) -> Any:
        """Run the pipeline; ``nsfw_content_detected`` and ``verdicts`` are outputs that can be asked for too."""
        call = super().__call__  # type: ignore[misc]
        attachment = self._nsfw_guard
        wanted = [output] if isinstance(output, str) else list(output or [])
        given = kwargs.get("output_type", getattr(state, "values", {}).get("output_type"))
        if attachment.settings.latents == "raise" and ("latents" in wanted or given == "latent"):
            raise SettingError(
                f"{type(self).__name__} is asked for latents, which the guard cannot look at. Ask for its images or "
                'videos; or, if another guarded pipeline decodes them, attach(pipe, guard, latents="allow").'
            )
        record = Record(attachment, device_of(self), pipe=self)
        found: list[Passed] = []
        with recording(record):
            state = call(state, None, **kwargs)
            for name, clips in OUTPUTS.items() if given != "latent" else ():
                if state.values.get(name) is not None:
                    state.values[name], passed = look(state.values[name], record, clips=clips)
                    found += passed
            said = report(found, record)
        if attachment.settings.latents == "raise" and (any(said["nsfw_content_detected"]) or not found):
            # They would show what was redacted; and where nothing was decoded, what nobody has looked at.
            for name, value in state.values.items():
                if "latent" in name and isinstance(value, (Tensor, list, tuple)):
                    state.values[name] = None
        for name, value in said.items():
            state.set(name, value)
        return state if output is None else state.get(output)
