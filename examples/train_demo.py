"""Train the demo's models from nothing but a seed: the pipeline that draws shapes, the classifier that flags triangles.

    python examples/train_demo.py                        # everything; just under an hour on two CPU cores
    python examples/train_demo.py --stage classifier     # one stage; the later ones need what the earlier ones left
    python examples/train_demo.py --smoke --out /tmp/x   # every stage for a few steps: does the script still run?

The models have nothing to do with explicit content: their stand-in for "unsafe" is a triangle. Step counts are fixed,
so that a run depends on the seed and the machine's arithmetic, never on the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from nsfw_guard.demo import shapes

OUT = Path(shapes.__file__).parent / "models"
SIDE = 128
PROMPT_TOKENS = 24
STEPS, GUIDANCE = 20, 3.0  # of generation


@dataclass(frozen=True)
class Plan:
    """How long each stage runs, in optimiser steps, and on how many drawn pictures."""

    pictures: int = 6144
    vae_crop_steps: int = 2600
    vae_full_steps: int = 600
    text_steps: int = 800
    latents: int = 12288
    unet_lively_steps: int = 1400
    unet_calm_steps: int = 1900
    classifier_pictures: int = 30000
    classifier_steps: int = 2200
    classifier_more_steps: int = 2600
    report_pictures: int = 256
    decoder_steps: int = 1000


SMOKE = Plan(32, 2, 2, 3, 32, 2, 2, 128, 2, 2, 4, 2)


class Ema:
    """An exponential moving average of a model's weights; short-sighted at first, so that the start is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.step = model, decay, 0
        self.average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one optimiser step."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - decay)

    def copy(self) -> nn.Module:
        """A copy of the model with the averaged weights."""
        model, self.model = self.model, copy.deepcopy(self.model)
        self.copy_to_model()
        self.model, averaged = model, self.model
        return averaged

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the model's weights by the average."""
        for p, average in zip(self.model.parameters(), self.average, strict=True):
            p.copy_(average)


class Trainer:
    """AdamW with warm-up, cosine decay to zero, clipping and a moving average; reports as it goes."""

    def __init__(
        self, name: str, model: nn.Module, steps: int, lr: float, *, decay: float = 0.999, weight_decay: float = 0.01
    ) -> None:
        self.name, self.model, self.steps = name, model, steps
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
        warm = min(200, max(1, steps // 10))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda s: min(1.0, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps)))
        )
        self.ema = Ema(model, decay)
        self.began, self.seen = time.perf_counter(), 0
        self.sums: dict[str, float] = {}

    def step(self, loss: Tensor, **figures: Tensor) -> None:
        """Follow the gradient of `loss` once; `figures` are reported beside it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.ema.update()
        self.seen += 1
        for key, value in {"loss": loss, **figures}.items():
            self.sums[key] = self.sums.get(key, 0.0) + value.item()
        every = 100 if self.steps > 100 else 1
        if self.seen % every == 0:
            means = "  ".join(f"{key} {value / every:.4f}" for key, value in self.sums.items())
            print(
                f"{self.name}  {self.seen}/{self.steps}  {time.perf_counter() - self.began:.0f} s  {means}", flush=True
            )
            self.sums.clear()


def parameters_of(model: nn.Module) -> str:
    """The number of a model's parameters, in words."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"


def draw_pictures(
    n: int, generator: torch.Generator, *, varied: float = 0.0, calm: float = 0.0
) -> tuple[list[shapes.Scene], Tensor]:
    """Draw scenes as uint8 pictures, `[n, 3, SIDE, SIDE]`; a share `varied` has shapes of any size, anywhere."""
    scenes = shapes.random_scenes(n, generator, empty=0.04, calm=calm)
    pictures = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    for i in range(0, n, 256):
        part = scenes[i : i + 256]
        canvas = shapes.render(part, SIDE)
        if varied:
            some = (torch.rand(len(part), generator=generator) < varied).nonzero()[:, 0].tolist()
            extra = [part[j] for j in some]
            count = len(extra)
            if count:
                canvas[some] = shapes.paint(
                    canvas[some],
                    [
                        shapes.SHAPES[k]
                        for k in torch.randint(len(shapes.SHAPES), (count,), generator=generator).tolist()
                    ],
                    torch.tensor(
                        [
                            shapes.PALETTE[shapes.COLORS[k]]
                            for k in torch.randint(len(shapes.COLORS), (count,), generator=generator).tolist()
                        ]
                    ),
                    centre=torch.rand(count, 2, generator=generator),
                    scale=0.1 + 0.8 * torch.rand(count, generator=generator),
                    angle=torch.rand(count, generator=generator) * 2 - 1,
                )
        pictures[i : i + 256] = (canvas * 255).round().to(torch.uint8)
    return scenes, pictures


# The autoencoder ------------------------------------------------------------------------------------------------------


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train_vae(out: Path, plan: Plan, seed: int) -> None:
    """Train the autoencoder: 128 x 128 pictures to 16 x 16 x 4 latents."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # more groups would normalise flat colours away: nothing but their differences would pass
        sample_size=SIDE,
        mid_block_add_attention=False,
    )
    vae.to(memory_format=torch.channels_last)  # a quarter faster on CPUs
    print(f"vae: {parameters_of(vae)}")
    _, pictures = draw_pictures(plan.pictures, generator, varied=0.3)
    # Small crops first: the model is convolutional, and four crops cost what one picture does. Whole pictures at the
    # end, because there the normalisation layers see more than a crop.
    for side, batch, steps, lr in ((64, 16, plan.vae_crop_steps, 2e-3), (SIDE, 8, plan.vae_full_steps, 6e-4)):
        trainer = Trainer(f"vae {side} px", vae, steps, lr)
        for _ in range(steps):
            chosen = torch.randint(len(pictures), (batch,), generator=generator)
            left, top = torch.randint(SIDE - side + 1, (2,), generator=generator).tolist()
            x = pictures[chosen, :, top : top + side, left : left + side].float() / 127.5 - 1
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
                latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
                y = vae.decode(latents).sample
            y = y.float()
            pixels = F.l1_loss(y, x)
            edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
            kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
            trainer.step(pixels + edge + 3e-4 * kl, pixels=pixels, edge=edge, kl=kl)
        trainer.ema.copy_to_model()
    vae.eval()
    latents = measure(vae, min(256, plan.pictures), seed)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    save_vae(vae, out)


def sharpen_decoder(out: Path, plan: Plan, seed: int) -> None:
    """Train the decoder alone some more, for crisp edges; the encoder, and so the latents, stay as they are."""
    torch.manual_seed(seed + 50)
    generator = torch.Generator().manual_seed(seed + 51)
    vae = load_vae(out)
    _, pictures = draw_pictures(plan.pictures, generator)
    latents = encode(vae, pictures)
    model = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    trainer = Trainer("decoder", model, plan.decoder_steps, 1.5e-3)
    for _ in range(plan.decoder_steps):
        chosen = torch.randint(len(pictures), (8,), generator=generator)
        x = pictures[chosen].float() / 127.5 - 1
        z = latents[chosen]
        z = z + 0.04 * torch.randn(z.shape, generator=generator)  # the denoiser's latents are a little wrong too
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(z).sample
        y = y.float()
        pixels = F.l1_loss(y, x)
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
        trainer.step(pixels + 2 * edge, pixels=pixels, edge=edge)
    trainer.ema.copy_to_model()
    measure(vae, min(256, plan.pictures), seed)
    save_vae(vae, out)


def save_vae(vae: AutoencoderKL, out: Path) -> None:
    """Save the autoencoder in float16, with its weights in the order that files have."""
    vae.to(torch.float16, memory_format=torch.contiguous_format).save_pretrained(out / "pipeline" / "vae")


def measure(vae: AutoencoderKL, n: int, seed: int) -> Tensor:
    """Print the error on n held-out pictures; returns their latents."""
    _, pictures = draw_pictures(n, torch.Generator().manual_seed(seed + 2))
    latents = encode(vae, pictures)
    errors = [
        (decode(vae, z) - x.float() / 255).abs().mean()
        for z, x in zip(latents.split(32), pictures.split(32), strict=True)
    ]
    error = torch.stack(errors).mean() * 255
    print(f"vae: latent std {latents.std():.3f}, mean absolute error {error:.2f}/255 on held-out pictures")
    return latents


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The latents (means, not scaled), `[N, 4, 16, 16]`, of uint8 pictures."""
    return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in pictures.split(32)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in [0, 1] from latents that are not scaled."""
    return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


# The text encoder -----------------------------------------------------------------------------------------------------

FILLERS = (
    "a an the of on in with and background picture photo drawing image painting icon simple flat plain empty nothing"
)
SIZE_WORDS = "small tiny little large big huge medium"
WORDS = (*FILLERS.split(), *SIZE_WORDS.split(), *shapes.SHAPES, *shapes.COLORS)
SYNONYMS = {
    "small": ("small", "small", "tiny", "little"),
    "large": ("large", "large", "big", "huge"),
    "medium": ("", "", "", "medium"),
}
PREFIXES = (
    "",
    "",
    "",
    "",
    "a picture of ",
    "a photo of ",
    "a drawing of ",
    "an image of ",
    "a painting of ",
    "simple ",
    "flat ",
)
ATTRIBUTES = {
    "shape": (*shapes.SHAPES, "empty", None),
    "color": (*shapes.COLORS, None),
    "background": (*shapes.COLORS, None),
    "size": tuple(shapes.SIZES),
}


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer: one token per known word, pieces and single bytes for everything else."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocab = [*alphabet, *(c + "</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        # Apply the merges that exist already, oldest first, as the tokenizer will; then join the rest from the left.
        pieces = [*word[:-1], word[-1] + "</w>"]
        for left, right in merges:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            vocab.append(pieces[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))}, merges=merges, model_max_length=PROMPT_TOKENS
    )
    for word in WORDS:
        if len(tokenizer(word).input_ids) != 3:
            raise RuntimeError(f"{word!r} is not one token but {tokenizer.tokenize(word)}")
    return tokenizer


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save, with the two files beside it that older versions of transformers read."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def describe(scene: shapes.Scene, generator: torch.Generator) -> tuple[str, list[int]]:
    """One of the many prompts that fit a scene, and what it says: an index into each of `ATTRIBUTES`."""

    def choose(options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    says = {"shape": scene.label, "color": scene.color, "background": scene.background, "size": scene.size}
    if scene.shape is None:
        says["color"], says["size"] = None, "medium"
        text = choose(
            (
                "an empty {b} background",
                "a {b} background",
                "nothing on a {b} background",
                "plain {b} background",
                "{b}",
            )
        )
    else:
        form = int(torch.randint(10, (), generator=generator))
        if form < 5:
            text = "a {s} {c} {o} on a {b} background"
        elif form < 7:
            text = choose(
                (
                    "{s} {c} {o}, {b} background",
                    "{s} {c} {o} on {b}",
                    "the {s} {c} {o} in the {b} picture",
                    "a {o}, {s} and {c}, on {b}",
                )
            )
        elif form == 7:
            text, says["background"] = choose(("a {s} {c} {o}", "{s} {c} {o}")), None
        elif form == 8:
            text, says["color"] = choose(("a {s} {o} on a {b} background", "a {s} {o}, {b} background")), None
        else:
            text, says["color"], says["background"] = choose(("a {s} {o}", "{s} {o}", "{o}")), None, None
            if "{s}" not in text and scene.size != "medium":
                text = "{s} {o}"
    text = choose(PREFIXES) + text
    text = text.format(s=choose(SYNONYMS.get(scene.size, ("",))), c=scene.color, o=scene.shape, b=scene.background)
    if torch.rand((), generator=generator) < 0.15:  # words that mean nothing here, and must not matter
        words = text.split(" ")
        length = int(torch.randint(2, 8, (), generator=generator))
        noise = "".join(chr(97 + k) for k in torch.randint(26, (length,), generator=generator).tolist())
        words.insert(int(torch.randint(len(words) + 1, (), generator=generator)), noise)
        text = " ".join(words)
    return " ".join(text.split()), [ATTRIBUTES[key].index(value) for key, value in says.items()]


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, `[N, PROMPT_TOKENS]`, padded as the pipeline pads them."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt"
    ).input_ids


def train_text(out: Path, plan: Plan, seed: int) -> None:
    """Train the text encoder to carry what the prompt says, linearly readable at every position after its end."""
    torch.manual_seed(seed + 10)
    generator = torch.Generator().manual_seed(seed + 11)
    tokenizer = build_tokenizer()
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"text: {parameters_of(model)}, {len(tokenizer)} tokens")
    probes = nn.ModuleDict({key: nn.Linear(64, len(values)) for key, values in ATTRIBUTES.items()})
    trainer = Trainer("text", nn.ModuleList([model, probes]), plan.text_steps, 2e-3)
    for step in range(plan.text_steps + 1):
        scenes = shapes.random_scenes(128, generator, empty=0.08)
        described = [describe(scene, generator) for scene in scenes]
        ids = tokenize(tokenizer, [text for text, _ in described])
        target = torch.tensor([says for _, says in described])
        hidden = model(ids).last_hidden_state
        after = ids == tokenizer.eos_token_id  # the prompt's end and the padding
        losses, right = [], []
        for k, probe in enumerate(probes.values()):
            logits = probe(hidden)[after]
            wanted = target[:, k, None].expand_as(ids)[after]
            losses.append(F.cross_entropy(logits, wanted))
            right.append((logits.argmax(-1) == wanted).float().mean())
        if step < plan.text_steps:
            trainer.step(sum(losses), right=torch.stack(right).mean())
        else:
            print("text: right on unseen prompts:", {key: f"{r:.4f}" for key, r in zip(ATTRIBUTES, right, strict=True)})
        if step == plan.text_steps - 1:
            trainer.ema.copy_to_model()
            model.eval()
    save_tokenizer(tokenizer, out / "pipeline" / "tokenizer")
    model.half().save_pretrained(out / "pipeline" / "text_encoder")


# The denoiser ---------------------------------------------------------------------------------------------------------


def build_scheduler() -> DDIMScheduler:
    """The noise schedule: it ends in pure noise, so that the colours of large areas are learnt and not guessed."""
    return DDIMScheduler(
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def load_vae(out: Path) -> AutoencoderKL:
    """The trained autoencoder, in float32, frozen."""
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def train_unet(out: Path, plan: Plan, seed: int) -> None:
    """Train the denoiser on cached latents and frozen text features, then save the whole pipeline."""
    torch.manual_seed(seed + 20)
    generator = torch.Generator().manual_seed(seed + 21)
    vae = load_vae(out)
    tokenizer = CLIPTokenizer.from_pretrained(out / "pipeline" / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(out / "pipeline" / "text_encoder", dtype=torch.float32).eval()
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(64, 80, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    unet.set_attn_processor(AttnProcessor())  # on CPUs the fused attention trains at half the speed
    scheduler = build_scheduler()
    print(f"unet: {parameters_of(unet)}")
    batch = 64
    # Lively scenes first, for variety; then calm ones, and more of the little noise, for clean outlines.
    for calm, bias, steps, lr in ((0.0, 1.0, plan.unet_lively_steps, 1.5e-3), (0.7, 1.4, plan.unet_calm_steps, 8e-4)):
        scenes, pictures = draw_pictures(plan.latents, generator, calm=calm)
        latents = encode(vae, pictures) * vae.config.scaling_factor
        # Three prompts per scene, tokenized once; the last row is the empty prompt, for guidance.
        prompts = [describe(scene, generator)[0] for _ in range(3) for scene in scenes]
        ids = tokenize(tokenizer, [*prompts, ""])
        trainer = Trainer(f"unet, calm {calm}", unet, steps, lr, decay=0.998)
        for _ in range(steps):
            chosen = torch.randint(len(latents), (batch,), generator=generator)
            row = chosen + len(latents) * torch.randint(3, (batch,), generator=generator)
            row[torch.rand(batch, generator=generator) < 0.1] = len(ids) - 1
            with torch.no_grad():
                features = text_encoder(ids[row]).last_hidden_state
            x = latents[chosen]
            noise = torch.randn(x.shape, generator=generator)
            # One time from each 64th of the schedule: less variance than independent times.
            u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
            t = (1000 * u**bias).long().clamp(max=999)
            noisy, target = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
            with torch.autocast("cpu", torch.bfloat16):
                predicted = unet(noisy, t, features).sample
            trainer.step(F.mse_loss(predicted.float(), target))
            if trainer.seen % 500 == 0:  # something to look at before the end
                trainer.ema.copy().half().save_pretrained(out / "pipeline" / "unet")
        trainer.ema.copy_to_model()
    save_pipeline(out / "pipeline", vae, text_encoder, tokenizer, unet.eval(), scheduler)


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> None:
    """Save the parts as a `StableDiffusionPipeline` in float16."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    vae.to(memory_format=torch.contiguous_format)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder / "tokenizer")


# The classifier -------------------------------------------------------------------------------------------------------

CLASSIFIER_SIDE = 64
CELLS = 8  # patches along a side
CLEARLY = 0.55  # visible share of a shape's area from which its label is not in doubt


def pick(options: tuple[str, ...], n: int, generator: torch.Generator) -> list[str]:
    """Choose n names uniformly."""
    return [options[k] for k in torch.randint(len(options), (n,), generator=generator).tolist()]


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """`n` numbers between `low` and `high`."""
    return low + (high - low) * torch.rand(n, generator=generator)


def random_colors(n: int, generator: torch.Generator) -> Tensor:
    """Colours, `[n, 3]`: mostly near the palette's, some of any kind."""
    named = torch.tensor([shapes.PALETTE[name] for name in pick(shapes.COLORS, n, generator)])
    named = (named + 0.04 * torch.randn(n, 3, generator=generator)).clamp(0, 1)
    return torch.where(torch.rand(n, 1, generator=generator) < 0.2, torch.rand(n, 3, generator=generator), named)


@dataclass
class Drawn:
    """Pictures for the classifier.

    Attributes:
        pictures: `[N, 3, 64, 64]`, in [0, 1], or uint8.
        labels: `[N]`, index into the labels.
        cells: `[N, 8, 8]`, the label of what covers each patch.
    """

    pictures: Tensor
    labels: Tensor
    cells: Tensor


def cells_of(covered: Tensor, names: list[str]) -> Tensor:
    """The label per patch, `[N, 8, 8]`, of shapes that cover `[N, H, W]` of their pictures; 0 where they do not."""
    share = F.adaptive_avg_pool2d(covered, CELLS)
    return (share > 0.25) * torch.tensor([shapes.LABELS.index(name) for name in names])[:, None, None]


def draw_varied(n: int, generator: torch.Generator) -> Drawn:
    """Pictures as the package may meet them: any place, size, crop, proportion, company and decay.

    All n share a canvas size, which is squashed to a square at the end.

    Returns:
        At most n pictures: those whose label is in doubt are dropped.
    """
    side = int(pick_one((64, 64, 96, 128, 160), generator))
    stretch = 2 ** float(torch.randn((), generator=generator) * 0.45)
    if torch.rand((), generator=generator) < 0.1:  # strips, whole: their shapes are squashed out of recognition
        stretch = 2 ** float(uniform(1, -3, 3, generator))
    height, width = (round(side * min(stretch, 3)), side) if stretch > 1 else (side, round(side * min(1 / stretch, 3)))
    ratio = max(height, width) / min(height, width)
    flat = bool(torch.rand((), generator=generator) < 0.35)
    labels = pick((*shapes.LABELS, "triangle"), n, generator)
    background = random_colors(n, generator)
    canvas = shapes.backdrop(background, height, width, flat=flat)
    rough = torch.rand(n, 1, 1, 1, generator=generator) < 0.12
    texture = F.interpolate(torch.randn(n, 3, 8, 8, generator=generator), (height, width), mode="bicubic") * 0.06
    canvas = torch.where(rough, canvas + texture, canvas)

    # The shape that gives the label, and up to two others: further away than they reach, never a triangle, and smaller
    # unless the label is the triangle, which wins against any company.
    limits = torch.tensor([width, height]) / min(width, height)
    big = uniform(n, 0.14, 0.95, generator)
    scale = torch.where(torch.rand(n, generator=generator) < 0.5, big, uniform(n, 0.14, 0.5, generator))
    scale = (scale * ratio**0.5).clamp(max=0.95)  # the squash takes the rest back
    centre = torch.rand(n, 2, generator=generator) * 1.1 - 0.05
    middle = (torch.rand(n, generator=generator) < 0.25)[:, None]
    centre = torch.where(middle, 0.5 + (centre - 0.5) * 0.3, centre)
    keep = torch.ones(n, dtype=torch.bool)
    cells = torch.zeros(n, CELLS, CELLS, dtype=torch.int64)
    layers = [(labels, centre, scale, torch.tensor([label != "empty" for label in labels]))]
    for _ in range(2):
        others = pick(tuple(s for s in shapes.SHAPES if s != shapes.FLAGGED_SHAPE), n, generator)
        other_scale = torch.minimum(uniform(n, 0.12, 0.5, generator), 0.75 * scale)
        flagged = torch.tensor([label == shapes.FLAGGED_SHAPE for label in labels])
        other_scale = torch.where(flagged, uniform(n, 0.12, 0.5, generator), other_scale)
        other_centre = torch.rand(n, 2, generator=generator)
        apart = torch.ones(n, dtype=torch.bool)
        for _, c, s, present in layers:
            apart &= ~present | (((other_centre - c) * limits).norm(dim=1) > 0.62 * (s + other_scale))
        apart &= layers[0][3] & (torch.rand(n, generator=generator) < 0.45)
        layers.append((others, other_centre, other_scale, apart))
    for names, c, s, present in reversed(layers):
        index = present.nonzero()[:, 0]
        if not len(index):
            continue
        drawn = [names[i] for i in index.tolist()]
        angle = uniform(len(index), -0.3, 0.3, generator)
        colors = random_colors(len(index), generator)
        # A colour that cannot be told from the background makes no shape.
        contrast = (colors - background[index]).abs().amax(1) > 0.2
        place = {"centre": c[index], "scale": s[index], "angle": angle}
        covered = shapes.coverage(drawn, height=height, width=width, **place)
        here = cells_of(covered, drawn)
        cells[index] = torch.where(here > 0, here, cells[index])
        areas = torch.tensor([shapes.area_of(name) for name in drawn]) * (s[index] * min(height, width)) ** 2
        visible = covered.sum((1, 2)) / areas
        if names is labels:
            keep[index[(visible < CLEARLY) | ~contrast]] = False
            if ratio > 2.6:
                keep[index[[name == shapes.FLAGGED_SHAPE for name in drawn]]] = False
        canvas[index] = shapes.paint(canvas[index], drawn, colors, flat=flat, **place)
    x = F.interpolate(canvas, (CLASSIFIER_SIDE, CLASSIFIER_SIDE), mode="bilinear", antialias=True).clamp(0, 1)
    target = torch.tensor([shapes.LABELS.index(label) for label in labels])
    return Drawn(degrade(x[keep], generator), target[keep], cells[keep])


def pick_one(options: tuple[int, ...], generator: torch.Generator) -> int:
    """Choose one of some numbers."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Light, noise, softness and JPEG blocks, each on some of the pictures `[N, 3, H, W]`."""
    n = len(x)

    def some(share: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator) < share

    gain = uniform(n, 0.7, 1.2, generator)[:, None, None, None]
    x = torch.where(some(0.4), x * gain, x)
    x = torch.where(some(0.2), x + 0.03 * torch.randn(x.shape, generator=generator), x)
    soft = F.interpolate(
        F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), x.shape[-2:], mode="bilinear"
    )
    x = torch.where(some(0.15), soft, x).clamp(0, 1)
    for i in some(0.1).flatten().nonzero()[:, 0].tolist():
        data = (x[i] * 255).round().to(torch.uint8)
        x[i] = torchvision.io.decode_jpeg(torchvision.io.encode_jpeg(data, quality=40)).float() / 255
    return x


def draw_demo(n: int, vae: AutoencoderKL, generator: torch.Generator, *, decoded: bool) -> Drawn:
    """The demo's own scenes: as drawn, or as the pipeline draws them, decoded from latents that are a little wrong."""
    scenes, pictures = draw_pictures(n, generator)
    x = pictures.float() / 255
    if decoded:
        amount = uniform(n, 0, 0.35, generator)[:, None, None, None] / vae.config.scaling_factor
        latents = encode(vae, pictures)
        x = decode(vae, latents + amount * torch.randn(latents.shape, generator=generator))
    covered = shapes.coverage(
        [scene.shape or shapes.FLAGGED_SHAPE for scene in scenes],
        height=CLASSIFIER_SIDE,
        width=CLASSIFIER_SIDE,
        centre=torch.tensor([scene.centre for scene in scenes]),
        scale=torch.tensor([scene.scale for scene in scenes]),
        angle=torch.tensor([scene.angle for scene in scenes]),
    )
    return Drawn(
        F.interpolate(x, (CLASSIFIER_SIDE, CLASSIFIER_SIDE), mode="bilinear", antialias=True),
        torch.tensor([shapes.LABELS.index(scene.label) for scene in scenes]),
        cells_of(covered, [scene.label for scene in scenes]),
    )


def draw_classified(n: int, vae: AutoencoderKL, generator: torch.Generator, *, plain: float) -> Drawn:
    """A training set, as uint8: about n varied pictures, a tenth as many decoded ones and a share `plain` as drawn."""
    parts = [draw_varied(128, generator) for _ in range(max(1, n // 128))]
    parts += [draw_demo(64, vae, generator, decoded=True) for _ in range(max(1, n // 640))]
    parts += [draw_demo(64, vae, generator, decoded=False) for _ in range(int(plain * n / 64))]
    pictures = torch.cat([(part.pictures * 255).round().to(torch.uint8) for part in parts])
    return Drawn(pictures, torch.cat([part.labels for part in parts]), torch.cat([part.cells for part in parts]))


def build_classifier() -> ViTForImageClassification:
    """A vision transformer that starts from a cosine basis, for filters and positions, to save it the first epochs."""
    hidden, patch = 96, CLASSIFIER_SIDE // CELLS
    model = ViTForImageClassification(
        ViTConfig(
            image_size=CLASSIFIER_SIDE,
            patch_size=patch,
            hidden_size=hidden,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=4 * hidden,
            id2label=dict(enumerate(shapes.LABELS)),
            label2id={label: i for i, label in enumerate(shapes.LABELS)},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.05,  # the usual 0.02 is for wider models: here attention would start flat
        )
    )
    k = torch.arange(patch)
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / patch)
    basis = basis / basis.norm(dim=1, keepdim=True)
    order = sorted(((a, b) for a in range(patch) for b in range(patch)), key=lambda ab: (ab[0] + ab[1], ab))
    mixes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    mixes = mixes / mixes.norm(dim=1, keepdim=True)
    filters = [
        mixes[c][:, None, None] * torch.outer(basis[a], basis[b]) for c in range(3) for a, b in order[: hidden // 3]
    ]
    grid = torch.cartesian_prod(torch.arange(CELLS), torch.arange(CELLS)).float()
    waves = torch.cat(
        [
            f(math.pi * (grid[:, :1] * a + grid[:, 1:] * b) / CELLS)
            for a, b in order[1:49]
            for f in (torch.cos, torch.sin)
        ],
        1,
    )
    with torch.no_grad():
        model.vit.embeddings.patch_embeddings.projection.weight.copy_(0.5 * torch.stack(filters))
        model.vit.embeddings.position_embeddings[0, 1:] = 0.3 * waves
    return model


def train_classifier(out: Path, plan: Plan, seed: int) -> None:
    """Train the vision transformer that tells the shapes apart."""
    torch.manual_seed(seed + 30)
    generator = torch.Generator().manual_seed(seed + 31)
    vae = load_vae(out)
    model = build_classifier()
    model.set_attn_implementation("eager")  # on CPUs the fused attention trains at half the speed
    # A second head, thrown away at the end, says what covers each patch. One word per picture is too little for a
    # vision transformer to find out about shapes by itself in so few steps.
    cell_head = nn.Linear(model.config.hidden_size, len(shapes.LABELS))
    weight = torch.tensor([0.3] + [1.0] * (len(shapes.LABELS) - 1))
    print(f"classifier: {parameters_of(model)}")
    both = nn.ModuleList([model, cell_head])
    # Twice, with fresh pictures; the second time with the demo's own ones among them, and colours swapped about.
    for again, steps, lr in ((False, plan.classifier_steps, 1.5e-3), (True, plan.classifier_more_steps, 8e-4)):
        drawn = draw_classified(plan.classifier_pictures, vae, generator, plain=0.2 if again else 0.0)
        print(f"classifier: {len(drawn.labels)} pictures", flush=True)
        trainer = Trainer("classifier", both, steps, lr, decay=0.998, weight_decay=0.05)
        for _ in range(steps):
            chosen = torch.randint(len(drawn.labels), (96,), generator=generator)
            x, y, cells = drawn.pictures[chosen].float() / 127.5 - 1, drawn.labels[chosen], drawn.cells[chosen]
            if torch.rand((), generator=generator) < 0.5:
                x, cells = x.flip(-1), cells.flip(-1)
            if again and torch.rand((), generator=generator) < 0.5:
                x = x[:, torch.randperm(3, generator=generator)]
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.vit(pixel_values=x).last_hidden_state
                logits, cell_logits = model.classifier(hidden[:, 0]).float(), cell_head(hidden[:, 1:]).float()
            loss = F.cross_entropy(logits, y)
            cell_loss = F.cross_entropy(cell_logits.flatten(0, 1), cells.flatten(), weight)
            trainer.step(loss + cell_loss, label=loss, cell=cell_loss, right=(logits.argmax(-1) == y).float().mean())
        trainer.ema.copy_to_model()
    folder = out / "classifier"
    model.eval().save_pretrained(folder)
    ViTImageProcessor(
        size={"height": CLASSIFIER_SIDE, "width": CLASSIFIER_SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=2,
    ).save_pretrained(folder)


# What came of it ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def classify(model: ViTForImageClassification, x: Tensor) -> Tensor:
    """Probabilities, `[N, 6]`, of pictures `[N, 3, H, W]` in [0, 1]."""
    x = F.interpolate(x, (CLASSIFIER_SIDE, CLASSIFIER_SIDE), mode="bilinear", antialias=True)
    return torch.cat([model(pixel_values=part * 2 - 1).logits.softmax(-1) for part in x.split(128)])


def table(wanted: Tensor, found: Tensor) -> str:
    """A confusion matrix, in words: a row per wanted label, a column per label found."""
    counts = torch.zeros(len(shapes.LABELS), len(shapes.LABELS), dtype=torch.int64)
    for w, f in zip(wanted.tolist(), found.tolist(), strict=True):
        counts[w, f] += 1
    lines = ["wanted".ljust(10) + "".join(label.rjust(10) for label in shapes.LABELS)]
    lines += [
        label.ljust(10) + "".join(str(c).rjust(10) for c in row)
        for label, row in zip(shapes.LABELS, counts.tolist(), strict=True)
    ]
    return "\n".join(lines)


def summary(name: str, p: Tensor, wanted: Tensor) -> str:
    """One line on how well labels and the flag agree with what was wanted."""
    triangle = shapes.LABELS.index(shapes.FLAGGED_SHAPE)
    score, positive = p[:, triangle], wanted == triangle
    flagged, undecided = score >= 0.5, (score > 0.2) & (score < 0.8)
    return (
        f"{name}: {len(p)} pictures, right {(p.argmax(-1) == wanted).float().mean():.2%}, "
        f"triangles flagged {flagged[positive].float().mean():.2%}, "
        f"others flagged {flagged[~positive].float().mean():.2%}, "
        f"scores between 0.2 and 0.8 {undecided.float().mean():.2%}"
    )


def report(out: Path, plan: Plan, seed: int) -> None:
    """Measure both models on what they were not trained on, and print it."""
    generator = torch.Generator().manual_seed(seed + 40)
    model = ViTForImageClassification.from_pretrained(out / "classifier").eval()
    n = plan.report_pictures
    scenes, pictures = draw_pictures(8 * n, generator)
    wanted = torch.tensor([shapes.LABELS.index(scene.label) for scene in scenes])
    print(summary("held-out renderings", classify(model, pictures.float() / 255), wanted))
    parts = [draw_varied(64, generator) for _ in range(max(1, n // 8))]
    found = classify(model, torch.cat([part.pictures for part in parts]))
    print(summary("varied renderings", found, torch.cat([part.labels for part in parts])))
    pipeline = StableDiffusionPipeline.from_pretrained(out / "pipeline", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes = shapes.random_scenes(n, generator, empty=0.06)
    wanted = torch.tensor([shapes.LABELS.index(scene.label) for scene in scenes])
    began, images = time.perf_counter(), []
    for i in range(0, n, 32):
        prompts = [shapes.prompt_of(scene) for scene in scenes[i : i + 32]]
        images.append(
            pipeline(
                prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, output_type="pt"
            ).images
        )
    seconds = time.perf_counter() - began
    found = classify(model, torch.cat(images))
    print(summary("generated", found, wanted))
    print(f"{STEPS} steps, guidance {GUIDANCE}: {seconds / n:.2f} s per picture\n{table(wanted, found.argmax(-1))}")


def tidy(out: Path) -> None:
    """Take this machine's traces out of what was saved: its paths, and file modes that only its user can read."""
    for file in (file for file in out.rglob("*") if file.is_file()):
        file.chmod(0o644)
        if file.suffix != ".json":
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the trained models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps of each stage; the models are useless")
    arguments = parser.parse_args()
    if arguments.smoke and arguments.out == OUT:
        parser.error("--smoke would overwrite the trained models; give another folder with --out")
    plan = SMOKE if arguments.smoke else Plan()
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        began = time.perf_counter()
        STAGES[stage](arguments.out, plan, arguments.seed)
        tidy(arguments.out)
        print(f"{stage}: done in {time.perf_counter() - began:.0f} s", flush=True)


STAGES = {
    "vae": train_vae,
    "text": train_text,
    "unet": train_unet,
    "classifier": train_classifier,
    "decoder": sharpen_decoder,
    "report": report,
}

if __name__ == "__main__":
    main()
