"""A guard in a pipeline never answers for it: what the pipeline says of its dtype and device is its other modules'."""

import copy
import pickle

import pipelines
import pytest
import torch
from diffusers import StableDiffusionPipeline
from nsfw_guard.integrations.diffusers_pipeline import NsfwGuardBlock, attach, detach
from pipelines import modular, slots
from safetensors.torch import save_file
from test_attach_more import adapter_for, run_adapter, vision_tower

from nsfw_guard import NsfwGuard
from nsfw_guard.hosts import Pipelines

pytestmark = pytest.mark.usefixtures("one_thread")

META = torch.device("meta")  # stands in for a second device, which not every machine has


class Older(StableDiffusionPipeline):
    """Says where it is as diffusers 0.36 to 0.39 do: as its first module, by name, wherever the others are."""

    @property
    def device(self):
        names, _ = self._get_signature_keys(self)
        modules = [getattr(self, name, None) for name in names]
        return next(module.device for module in modules if isinstance(module, torch.nn.Module))


def older(guard=None):
    parts = pipelines.stable_diffusion(guard).components
    return Older(**parts, requires_safety_checker=False)


def assigned(pipe, guard):
    pipe.safety_checker = guard
    return pipe


WAYS_IN = {
    "assigned": assigned,
    "registered": lambda pipe, guard: pipe.register_modules(safety_checker=guard) or pipe,
    "attached": attach,
    "attached to one that is in the slot": lambda pipe, guard: attach(assigned(pipe, guard)),
    "compiled": lambda pipe, guard: assigned(pipe, torch.compile(guard, backend="eager")),
    "constructed": lambda pipe, guard: type(pipe)(
        **{**pipe.components, "safety_checker": guard}, requires_safety_checker=False
    ),
    "copied": lambda pipe, guard: copy.deepcopy(attach(pipe, guard)),
    "pickled": lambda pipe, guard: pickle.loads(pickle.dumps(attach(pipe, guard))),
    "detached": lambda pipe, guard: assigned(detach(attach(pipe, guard)), guard),
}
PINNED = [{}, {"device": "cpu", "dtype": "bfloat16"}]


def said(pipe):
    return pipe.dtype, pipe.device, pipe._execution_device


CASTS = [({}, torch.bfloat16), ({"dtype": "bfloat16"}, torch.float32), ({"dtype": "float32"}, torch.float16)]
CASES = [
    *((pipelines.stable_diffusion, way, *case) for way in WAYS_IN for case in CASTS),
    *((older, way, *case) for way in ("assigned", "attached") for case in CASTS),
    *((pipelines.stable_diffusion_adapter, way, *CASTS[1]) for way in ("assigned", "attached")),
]


@pytest.mark.parametrize(("build", "way", "pinned", "cast"), CASES)
def test_a_pipeline_stays_what_it_was_when_a_guard_comes(tiny_folder, build, way, pinned, cast):
    plain = build().to(cast)
    pipe = WAYS_IN[way](build().to(cast), NsfwGuard(tiny_folder, **pinned))
    assert isinstance(getattr(pipe.safety_checker, "_orig_mod", pipe.safety_checker), NsfwGuard)
    assert said(pipe) == said(plain)
    assert pipe.dtype == pipe.unet.dtype == cast


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize("way", ["assigned", "attached", "compiled"])
@pytest.mark.parametrize("build", [pipelines.stable_diffusion, older])
def test_a_guard_that_is_elsewhere_takes_no_pipeline_there(tiny_folder, build, way, pinned):
    """As the README has it: first ``pipe.to("cuda")``, then the guard."""
    pipe = WAYS_IN[way](build().to(META), NsfwGuard(tiny_folder, **pinned))
    assert said(pipe) == said(build().to(META))
    here = WAYS_IN[way](build(), NsfwGuard(tiny_folder, **pinned).to(META))
    assert said(here) == said(build())


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize("build", [pipelines.stable_diffusion, older])
def test_moves_and_casts_of_a_pipeline_with_its_guard(tiny_folder, build, pinned):
    plain, pipe = build(), build(NsfwGuard(tiny_folder, **pinned))
    for move in ((torch.bfloat16,), (META,), (META, torch.float16)):
        plain.to(*move)
        pipe.to(*move)
        assert said(pipe) == said(plain)


@pytest.mark.parametrize("way", ["assigned", "attached"])
def test_of_modules_in_several_dtypes_the_pipelines_first_one_speaks(tiny_folder, way):
    plain, pipe = pipelines.stable_diffusion().to(torch.bfloat16), pipelines.stable_diffusion().to(torch.bfloat16)
    for one in (plain, pipe):
        one.vae.to(torch.float32)
        one.unet.to(torch.float16)
    WAYS_IN[way](pipe, NsfwGuard(tiny_folder))
    assert pipe.dtype == plain.dtype == torch.bfloat16  # the text encoder's
    pipe.text_encoder.to(torch.float64)
    assert pipe.dtype == torch.float64, "it is asked each time"


def test_two_pipelines_that_share_a_guard_say_what_they_are(tiny_folder):
    guard = NsfwGuard(tiny_folder)
    one, other = pipelines.stable_diffusion(guard), pipelines.stable_diffusion(guard)
    one.to(torch.float16)
    assert (one.dtype, other.dtype, one.dtype) == (torch.float16, torch.float32, torch.float16)
    other.to(META)
    assert (one.device.type, other.device.type) == ("cpu", "meta")


def test_two_guards_in_one_pipeline(tiny_folder):
    pipe = pipelines.stable_diffusion(NsfwGuard(tiny_folder)).to(torch.float16)
    pipe.register_modules(image_encoder=NsfwGuard(tiny_folder))
    assert pipe.dtype == torch.float16


def test_offloaded_pipelines_compute_where_they_did(tiny_folder):
    offloads = {
        "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        "group": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
    }
    for offload in offloads.values():
        plain, pipe = pipelines.stable_diffusion(), attach(pipelines.stable_diffusion(), NsfwGuard(tiny_folder))
        offload(plain)
        offload(pipe)
        assert said(pipe) == said(plain)


def test_latents_of_the_pipelines_dtype(tiny_folder):
    """In float32, as the pipeline is; where the CPU has bfloat16, the guard's weights are in that."""
    case = slots.CASES["stable_diffusion"]
    pipe = attach(case.build(), NsfwGuard(tiny_folder, dtype="bfloat16"))
    latents = torch.randn(3, 4, 32, 32, dtype=pipe.dtype, device=pipe._execution_device)
    assert len(case.run(pipe, "np", latents=latents).nsfw_content_detected) == 3


@pytest.mark.parametrize("way", ["assigned", "attached"])
def test_an_ip_adapter_that_is_loaded_after_the_guard_draws_the_same(tiny_folder, tmp_path, way):
    pipe, plain = pipelines.stable_diffusion(), pipelines.stable_diffusion()
    weights = adapter_for(pipe.unet)
    flat = {f"{group}.{name}": tensor for group, tensors in weights.items() for name, tensor in tensors.items()}
    (tmp_path / "models").mkdir()
    save_file(flat, tmp_path / "models" / "adapter.safetensors", {"format": "pt"})
    vision_tower(32).save_pretrained(tmp_path / "models" / "image_encoder")
    WAYS_IN[way](pipe, NsfwGuard(tiny_folder, dtype="bfloat16", threshold=1.0, redaction="none"))
    for one in (pipe, plain):
        one.load_ip_adapter(tmp_path, subfolder="models", weight_name="adapter.safetensors")
    assert pipe.image_encoder.dtype == plain.image_encoder.dtype == torch.float32
    picture = {"ip_adapter_image": slots.PICTURES[0]}
    assert (run_adapter(pipe, **picture).images == run_adapter(plain, **picture).images).all()


@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16])
def test_a_modular_pipeline_with_a_guard_among_its_components(tiny_folder, cast):
    plain = modular.CASES["flux"].build() if "flux" in modular.CASES else next(iter(modular.CASES.values())).build()
    blocks = plain.blocks
    blocks.sub_blocks.insert("guard", NsfwGuardBlock(), 0)  # asked for its components first
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    pipe.update_components(safety_checker=NsfwGuard(tiny_folder, dtype="float16"))
    for one in (plain, pipe):
        one.to(cast)
    assert (pipe.dtype, pipe.device, pipe._execution_device) == (plain.dtype, plain.device, plain._execution_device)


# --- Read by somebody else than the pipeline -------------------------------------------------------------------------


def test_a_guard_alone_is_in_float32_until_a_host_casts_it(tiny_folder):
    guard = NsfwGuard(tiny_folder, dtype="bfloat16")
    assert (guard.dtype, guard.device) == (torch.float32, torch.device("cpu"))
    assert guard.describe()["dtype"] == "torch.bfloat16"
    guard = NsfwGuard(tiny_folder).to(torch.float16)
    assert guard.dtype == torch.float16
    assert guard.to(META).device == META


@pytest.mark.parametrize("way", ["attached", "attached to one that is in the slot"])
def test_a_guard_that_was_attached_says_what_its_pipeline_is(tiny_folder, way):
    guard = NsfwGuard(tiny_folder, dtype="bfloat16")
    pipe = WAYS_IN[way](pipelines.stable_diffusion().to(META, torch.float16), guard)
    assert (guard.dtype, guard.device) == (torch.float16, META)
    detach(pipe)
    pipe.safety_checker = None
    assert (guard.dtype, guard.device.type) == (torch.float32, "cpu")


def test_a_guard_in_a_slot_knows_its_pipeline_once_that_asked(tiny_folder):
    guard = NsfwGuard(tiny_folder)
    pipe = assigned(pipelines.stable_diffusion().to(torch.float16), guard)
    assert pipe.dtype == guard.dtype == torch.float16
    del pipe
    assert guard.dtype == torch.float32


def test_what_holds_a_guard_and_is_no_pipeline(tiny_folder):
    class Slots:
        __slots__ = ("guard",)

        def ask(self):
            return self.guard.dtype

    class Plain:
        def ask(self):
            return self.guard.dtype

    class Mine(Plain):
        def __init__(self):
            self.broken = torch.nn.Module()
            self.unet = torch.nn.Linear(1, 1)
            self.unet.dtype = torch.float16
            self._hidden = torch.nn.Linear(1, 1)

    for holder, expected in ((Slots(), torch.float32), (Plain(), torch.float32), (Mine(), torch.float16)):
        holder.guard = NsfwGuard(tiny_folder, dtype="bfloat16")
        assert holder.ask() == expected
    module = torch.nn.Module()
    module.guard = NsfwGuard(tiny_folder, dtype="bfloat16")
    assert module.guard.dtype == torch.float32


def test_pipelines_that_were_seen_are_not_kept_alive_nor_copied():
    class Seen:
        pass

    pipelines_seen, seen = Pipelines(), Seen()
    pipelines_seen.remember(seen)
    assert pickle.loads(pickle.dumps(pipelines_seen))._seen is None
    assert copy.deepcopy(pipelines_seen)._seen is None
    del seen
    assert pipelines_seen._seen() is None
    pipelines_seen.remember(3)  # which cannot be referred to weakly
