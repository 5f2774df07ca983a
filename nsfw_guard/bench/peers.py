"""What people use today, each as its own documentation says, from the same decoded tensor; and the bare forward.

The stock checker sits in a diffusers pipeline and is called through the pipeline's ``run_safety_checker``. The other
two take PIL images, so what glues them on after a generator is counted: the tensor is brought to the host and made into
pictures, as diffusers does it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..cards import ModelCard
from ..errors import SettingError
from ..verdict import Level
from .work import Source

RECIPE_MODEL = "freepik"
_RECIPE_CONFIG = "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k"
_NEEDS = "pip install 'nsfw-guard[bench]'"
# CLIP ViT-L/14 at 224 pixels, of the checker that Stable Diffusion 1 ships.
_CLIP_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}


def to_pil(images: Tensor) -> list[Image.Image]:
    """Make pictures of a decoded batch ``[B, 3, H, W]`` in [-1, 1], step by step as diffusers' image processor does."""
    array = (images * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]


class StockPath:
    """The checker of Stable Diffusion 1 in a ``StableDiffusionPipeline``, whose other parts are the demo's tiny ones.

    Args:
        device: Where the checker runs.
        vision: Config of its CLIP vision tower, by default the real one.

    Raises:
        SettingError: diffusers is not installed.
    """

    def __init__(self, device: torch.device, *, vision: dict[str, int] | None = None) -> None:
        try:
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

            from ..demo.generate import load_pipeline
        except ImportError as error:
            raise SettingError(f"The stock checker needs diffusers: {_NEEDS} ({error}).") from error
        from transformers import CLIPConfig

        config = CLIPConfig(vision_config=vision or _CLIP_L_14, projection_dim=768)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            checker: Any = StableDiffusionSafetyChecker(config).eval()
        self.device = device
        self.dtype = torch.float32
        # The slot takes any checker.
        self.pipeline: Any = load_pipeline(checker.to(device))

    def to(self, dtype: torch.dtype) -> StockPath:
        """Return the same path in another dtype."""
        other = copy.copy(self)
        other.dtype = dtype
        other.pipeline = copy.copy(self.pipeline)
        other.pipeline.safety_checker = copy.deepcopy(self.pipeline.safety_checker).to(dtype)
        return other

    def aim(self, images: Tensor, wanted: int) -> None:
        """Set a concept of the checker so that it flags so many of the images, where its rounding allows that."""
        checker = self.pipeline.safety_checker
        seen: list[Tensor] = []
        hook = checker.visual_projection.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            self(images.clone())
        finally:
            hook.remove()
        if not 0 < wanted < len(images):
            checker.concept_embeds_weights.data[0] = 2.0 if wanted == 0 else -2.0
            return
        embeds = torch.nn.functional.normalize(seen[0].float())
        concept = embeds[:wanted].mean(0) - embeds[wanted:].mean(0)
        cosines = embeds @ torch.nn.functional.normalize(concept, dim=0)
        ranked = cosines.sort(descending=True).values
        checker.concept_embeds.data[0] = concept
        checker.concept_embeds_weights.data[0] = (ranked[wanted - 1] + ranked[wanted]) / 2

    def __call__(self, images: Tensor) -> list[bool]:
        """Check a batch and return its flags. It paints flagged images black in place: hand over a copy."""
        _, flags = self.pipeline.run_safety_checker(images, self.device, self.dtype)
        return [bool(flag) for flag in flags]


class TransformersPipeline:
    """``transformers.pipeline("image-classification")`` on the same checkpoint, with its defaults.

    On a GPU the images are batched; on a CPU its documentation advises against that.

    Attributes:
        pipeline: The pipeline itself, which takes PIL images.
        dtype: Of its model.
    """

    def __init__(self, source: Source, device: torch.device) -> None:
        from transformers import pipeline

        self.pipeline: Any = pipeline("image-classification", model=str(source.folder), device=device)
        self._card = source.card
        self._batched = device.type == "cuda"
        self.dtype: torch.dtype = self.pipeline.model.dtype

    def __call__(self, images: Tensor) -> list[bool]:
        """Classify a batch and return whether the first label of each image is one to be flagged."""
        options = {"batch_size": len(images)} if self._batched else {}
        return [_is_flagged(labels[0]["label"], self._card) for labels in self.pipeline(to_pil(images), **options)]


class FreepikRecipe:
    """The package ``nsfw-image-detector`` if it is installed, else what the model's card says to do.

    Attributes:
        name: Which of the two.
    """

    dtype = torch.bfloat16  # the package's default, and the card's advice

    def __init__(self, source: Source, device: torch.device) -> None:
        if importlib.util.find_spec("nsfw_image_detector") is not None:
            from nsfw_image_detector import NSFWDetector

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._detector = NSFWDetector(str(source.folder), device=str(device), dtype=self.dtype)
            self.name = "nsfw-image-detector"
            return
        from timm.data import create_transform, resolve_data_config
        from timm.models import get_pretrained_cfg

        self._detector = None
        self.name = "the model card's recipe"
        config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(_RECIPE_CONFIG).to_dict())
        self._transform: Any = create_transform(**config)
        self._model = load_reference(source, device, self.dtype)
        self._device = device

    def __call__(self, images: Tensor) -> list[bool]:
        """Classify a batch and return its flags, at the level medium and the threshold 0.5 as by default."""
        pictures = to_pil(images)
        if self._detector is not None:
            return [bool(flag) for flag in self._detector.is_nsfw(pictures)]
        inputs = torch.stack([self._transform(picture) for picture in pictures]).to(self._device, self.dtype)
        with torch.inference_mode():
            probabilities = self._model(pixel_values=inputs).logits.softmax(dim=-1).float().cpu()
        return [bool(flag) for flag in probabilities[:, 2:].sum(dim=1) >= 0.5]


class BareForward:
    """The classifier alone: the reference library's own eager forward, on model input that is ready."""

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self._model = load_reference(source, device, dtype)
        self._device = device
        self.dtype = dtype
        spec = source.card.preprocess
        self._size = spec.size if spec is not None else 0

    def inputs(self, batch: int) -> Tensor:
        """Return model input ``[B, 3, size, size]``, of the model's dtype and device."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, self._size, self._size, generator=generator).to(self._device, self.dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        with torch.inference_mode():
            logits: Tensor = self._model(pixel_values=inputs).logits
        return logits


def load_reference(source: Source, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a checkpoint with transformers and nothing else."""
    from transformers import AutoModelForImageClassification

    model: Any = AutoModelForImageClassification.from_pretrained(
        source.folder, use_safetensors=True, local_files_only=True
    )
    return model.to(device, dtype).eval()


def quiet() -> None:
    """Switch off the libraries' progress bars, and the stock checker's warning at each flagged image."""
    import transformers

    libraries = [transformers.utils.logging]
    with contextlib.suppress(ImportError):
        import diffusers

        libraries.append(diffusers.utils.logging)
    for logging in libraries:
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _is_flagged(label: str, card: ModelCard) -> bool:
    return card.levels[label] >= Level.MEDIUM
