"""The nodes that the operator's mode puts into prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from nsfw_guard.errors import GuardError, ImageError, SettingError

from . import enforce_settings, options
from .enforce_graph import AT_OUTPUT, AT_SOURCE, UNCUT
from .enforce_values import Look, filled

REFUSED = "NSFWG_Refused"


class _Guarding(io.ComfyNode):
    """A node that looks at what goes through it."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        """Changes with the operator's settings and checkpoint."""
        try:
            return enforce_settings.stamp()
        except GuardError:
            return None  # the node itself will say it

    @classmethod
    def looked_at(cls, value: Any, *, strict: bool) -> io.NodeOutput:
        """Guard it by the operator's settings."""
        look = Look(cls.hidden.unique_id, strict=strict)
        made = look.guarded(value)
        return io.NodeOutput(made, ui=look.trace(f"{cls.hidden.unique_id}"))


def _schema(node_id: str, display_name: str, description: str, more: list[Any]) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="image/safety",
        description=description,
        inputs=[io.AnyType.Input("value"), *more],
        outputs=[io.AnyType.Output("guarded")],
        hidden=[io.Hidden.unique_id],
        is_dev_only=True,
        has_intermediate_output=True,
    )


class Enforced(_Guarding):
    """The guard that is put before outputs: it looks at whatever comes, and refuses what cannot be looked at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return _schema(AT_OUTPUT, "NSFW Guard (enforced)", "Put before outputs by the operator of this server.", [])

    @classmethod
    def execute(cls, value: Any = None) -> io.NodeOutput:
        """Look at it, strictly."""
        return cls.looked_at(value, strict=True)


class EnforcedSource(_Guarding):
    """The guard that is put behind what makes pictures: it looks at those, and hands anything else on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        said = "Put behind what makes pictures by the operator of this server."
        return _schema(AT_SOURCE, "NSFW Guard (enforced, source)", said, [])

    @classmethod
    def execute(cls, value: Any = None) -> io.NodeOutput:
        """Look at the pictures in it."""
        return cls.looked_at(value, strict=False)


class EnforcedUncut(_Guarding):
    """Hands on what was decoded from a latent that was cut, turned or mixed, if the whole latent is not flagged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        said = "Put behind what decodes cut latents by the operator of this server."
        more = [io.AnyType.Input("latent"), io.AnyType.Input("vae")]
        return _schema(UNCUT, "NSFW Guard (enforced, whole latent)", said, more)

    @classmethod
    def execute(cls, value: Any = None, latent: Any = None, vae: Any = None) -> io.NodeOutput:
        """Decode the whole latent, and look at it."""
        look = Look(cls.hidden.unique_id, strict=False)
        flagged = [look.uncut(decoded(samples, vae)) for samples in _latents_in(latent)]
        ui = look.trace(f"{cls.hidden.unique_id}")
        if not any(flagged):
            return io.NodeOutput(value, ui=ui)
        blocks = look.settings.action["action"] == options.BLOCK
        return io.NodeOutput(look.held() if blocks else filled(value), ui=ui)


class Refused(io.ComfyNode):
    """What is left of a prompt that could not be guarded: it does not validate, and says why."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node has."""
        return io.Schema(
            node_id=REFUSED,
            display_name="Refused by NSFW Guard",
            category="image/safety",
            inputs=[io.String.Input("reason", default="")],
            outputs=[],
            is_output_node=True,
            is_dev_only=True,
        )

    @classmethod
    def validate_inputs(cls, reason: str = "") -> bool | str:
        """Never valid."""
        return f"This server guards every prompt, and could not guard this one, so it was not run: {reason}"

    @classmethod
    def execute(cls, reason: str = "") -> io.NodeOutput:
        """Never run."""
        raise SettingError(reason)


def decoded(samples: Tensor, vae: Any) -> Tensor:
    """Decode a latent as VAE Decode does: ``[B, H, W, C]``.

    Raises:
        ImageError: The VAE cannot.
    """
    if getattr(samples, "is_nested", False):  # with sound; the pictures come first
        samples = samples.unbind()[0]
    try:
        images: Tensor = vae.decode(samples)
    except Exception as error:
        raise ImageError(
            f"A latent of the shape {tuple(samples.shape)} was cut, turned or mixed before it was decoded, and the "
            f"whole cannot be decoded with the same VAE ({type(error).__name__}); expected one that is not cut."
        ) from error
    return images.reshape(-1, *images.shape[-3:])


def _latents_in(value: Any) -> list[Tensor]:
    """The latents in a value, which a wildcard may hold among other things."""
    if isinstance(value, dict):
        own = [value["samples"]] if isinstance(value.get("samples"), Tensor) else []
        return own + [one for key, item in value.items() if key != "samples" for one in _latents_in(item)]
    if isinstance(value, (list, tuple)):
        return [one for item in value for one in _latents_in(item)]
    return []


NODES = [Enforced, EnforcedSource, EnforcedUncut, Refused]
