"""A stand-in for what the node pack asks of ComfyUI, written from its interface: no more than the pack uses.

A test in ``test_comfyui.py`` compares its signatures with those of a real ComfyUI.
"""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

PACK = Path(__file__).parents[1] / "integrations" / "comfyui"

# --- comfy_api.latest: io --------------------------------------------------------------------------------------------


class NumberDisplay(str, enum.Enum):
    slider = "slider"


class Hidden(str, enum.Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"


class Input:
    def __init__(self, id, *, display_name=None, optional=False, tooltip=None, lazy=None, advanced=None):
        self.id, self.display_name, self.optional = id, display_name, optional
        self.tooltip, self.lazy, self.advanced = tooltip, lazy, advanced
        self.default = None


class Output:
    def __init__(self, id=None, *, display_name=None, tooltip=None):
        self.id, self.display_name, self.tooltip = id, display_name or id, tooltip


class BooleanInput(Input):
    def __init__(self, id, *, default=None, force_input=None, **shared):
        super().__init__(id, **shared)
        self.default, self.force_input = default, force_input


class IntInput(Input):
    def __init__(self, id, *, default=None, min=None, max=None, **shared):
        super().__init__(id, **shared)
        self.default, self.min, self.max = default, min, max


class FloatInput(Input):
    def __init__(self, id, *, default=None, min=None, max=None, step=None, display_mode=None, **shared):
        super().__init__(id, **shared)
        self.default, self.min, self.max, self.step, self.display_mode = default, min, max, step, display_mode


class StringInput(Input):
    def __init__(self, id, *, default=None, multiline=False, **shared):
        super().__init__(id, **shared)
        self.default, self.multiline = default, multiline


class ComboInput(Input):
    def __init__(self, id, *, options=None, default=None, **shared):
        super().__init__(id, **shared)
        self.options, self.default = options, default


class ColorInput(Input):
    def __init__(self, id, *, display_name=None, optional=False, tooltip=None, advanced=None, default="#ffffff"):
        super().__init__(id, display_name=display_name, optional=optional, tooltip=tooltip, advanced=advanced)
        self.default = default


def _type(io_type: str, input_class: type = Input) -> type:
    sockets = {"Input": input_class, "Output": Output}
    made = {name: type(name, (base,), {"io_type": io_type}) for name, base in sockets.items()}
    return type(io_type.title(), (), {"io_type": io_type, **made})


def Custom(io_type):
    return _type(io_type)


class MatchType:
    io_type = "COMFY_MATCHTYPE_V3"

    class Template:
        def __init__(self, template_id):
            self.template_id = template_id

    class Input(Input):
        io_type = "COMFY_MATCHTYPE_V3"

        def __init__(self, id, template, *, display_name=None, optional=False, tooltip=None):
            super().__init__(id, display_name=display_name, optional=optional, tooltip=tooltip)
            self.template = template

    class Output(Output):
        io_type = "COMFY_MATCHTYPE_V3"

        def __init__(self, template, id=None, *, display_name=None, tooltip=None):
            super().__init__(id, display_name=display_name, tooltip=tooltip)
            self.template = template


class DynamicCombo:
    io_type = "COMFY_DYNAMICCOMBO_V3"

    class Option:
        def __init__(self, key, inputs):
            self.key, self.inputs = key, inputs

    class Input(Input):
        io_type = "COMFY_DYNAMICCOMBO_V3"

        def __init__(self, id, options, *, display_name=None, optional=False, tooltip=None):
            super().__init__(id, display_name=display_name, optional=optional, tooltip=tooltip)
            self.options = options


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    is_dev_only: bool = False
    has_intermediate_output: bool = False


class _Lockable(type):
    def __setattr__(cls, name, value):
        if cls.__dict__.get("_locked"):
            raise AttributeError(f"Cannot set {name!r}: the class is locked while it runs.")
        super().__setattr__(name, value)


class ComfyNode(metaclass=_Lockable):
    hidden: Any = None

    @classmethod
    def define_schema(cls):
        raise NotImplementedError

    @classmethod
    def execute(cls, **kwargs):
        raise NotImplementedError

    @classmethod
    def check_lazy_status(cls, **kwargs):
        return [name for name, value in kwargs.items() if value is None]

    @classmethod
    def fingerprint_inputs(cls, **kwargs):
        raise NotImplementedError

    @classmethod
    def validate_inputs(cls, **kwargs):
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui

    def __getitem__(self, index):
        return self.args[index]


class ComfyExtension:
    async def on_load(self):
        pass

    async def get_node_list(self):
        raise NotImplementedError


io = SimpleNamespace(
    Image=_type("IMAGE"),
    Mask=_type("MASK"),
    Video=_type("VIDEO"),
    AnyType=_type("*"),
    Boolean=_type("BOOLEAN", BooleanInput),
    Int=_type("INT", IntInput),
    Float=_type("FLOAT", FloatInput),
    String=_type("STRING", StringInput),
    Combo=_type("COMBO", ComboInput),
    Color=_type("COLOR", ColorInput),
    Custom=Custom,
    MatchType=MatchType,
    DynamicCombo=DynamicCombo,
    Schema=Schema,
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
    Hidden=Hidden,
    NumberDisplay=NumberDisplay,
)

# --- comfy_api.latest: videos ----------------------------------------------------------------------------------------


@dataclass
class VideoComponents:
    images: Any
    frame_rate: Fraction
    audio: Any = None
    metadata: Any = None
    alpha: Any = None


class VideoInput:
    def get_components(self):
        raise NotImplementedError

    def get_bit_depth(self):
        return 8


class VideoFromFile(VideoInput):
    """Never made here: reading files is the real one's."""


class VideoFromComponents(VideoInput):
    def __init__(self, components, bit_depth=8):
        self._components, self._bit_depth = components, bit_depth

    def get_components(self):
        return self._components

    def get_bit_depth(self):
        return self._bit_depth


# --- The rest --------------------------------------------------------------------------------------------------------


class ExecutionBlocker:
    def __init__(self, message):
        self.message = message


class InterruptProcessingException(BaseException):
    pass


class LatentPreviewMethod(enum.Enum):
    NoPreviews = "none"
    Auto = "auto"


class PromptQueue:
    def __init__(self, server):
        self.server, self.queue = server, []

    def put(self, item):
        self.queue.append(item)


def get_output_from_returns(return_values, obj):
    """What a node put out, what the page is told, and whether graphs take its place, which are the first then."""
    expanding = [(value["expand"], value.get("result")) for value in return_values if "expand" in value]
    ui = {name: list(shown) for value in return_values for name, shown in value.get("ui", {}).items()}
    return expanding or [value["result"] for value in return_values], ui, bool(expanding)


async def get_output_data(prompt_id, unique_id, obj, input_data_all):
    return get_output_from_returns(input_data_all, obj)


class CoreModelPatcher:
    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


class Later:
    """The value of a link to a lazy input: made only when the node asks for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self.made = make, False

    def value(self) -> Any:
        self.made = True
        return self._make()


class Host:
    """One ComfyUI: its folders, what it was told, and its nodes.

    Attributes:
        progress: (node, value, total) of each update of a progress bar.
        texts: (node, text) of each text drawn on a node.
        loads: The (patchers, memory) of each request to load models.
        interrupt_at: The how manieth question whether to stop is answered with an interrupt; ``None`` for none.
        modules: The modules that stand in for ComfyUI's, by name.
        pack: The node pack's module.
        nodes: Its node classes, by id.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.models = base / "models" / "nsfw_guard"
        self.output = base / "output"
        self.output.mkdir(parents=True)
        self.temp = base / "temp"
        self.temp.mkdir()
        self.progress: list[tuple[Any, int, int]] = []
        self.loads: list[tuple[list[Any], float]] = []
        self.interrupt_at: int | None = None
        self.modules = _modules(self)
        self.pack: Any = None
        self.nodes: dict[str, Any] = {}

    def load_pack(self, name: str) -> None:
        """Import the folder by path and register its nodes, in the order in which ComfyUI does."""
        spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
        self.pack = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.pack)
        extension = asyncio.run(self.pack.comfy_entrypoint())
        asyncio.run(extension.on_load())
        for node in asyncio.run(extension.get_node_list()):
            schema = node.define_schema()
            node.OUTPUT_NODE, node.HAS_INTERMEDIATE_OUTPUT = schema.is_output_node, schema.has_intermediate_output
            node.RETURN_TYPES = [output.io_type for output in schema.outputs]
            inputs = {"required": {one.id: (one.io_type, {}) for one in schema.inputs}}
            node.INPUT_TYPES = classmethod(lambda cls, inputs=inputs: inputs)
            assert schema.node_id not in self.nodes
            self.nodes[schema.node_id] = node
        self.modules["nodes"].NODE_CLASS_MAPPINGS.update(self.nodes)

    def prepared(self, node_id: str, *, unique_id: str = "7", prompt: Any = None, extra_pnginfo: Any = None) -> Any:
        """A node's class as it is while it runs: a locked copy, with the hidden inputs that its schema asks for."""
        node = self.nodes[node_id]
        schema = node.define_schema()
        asked = {*schema.hidden, *((Hidden.prompt, Hidden.extra_pnginfo) if schema.is_output_node else ())}
        hidden = {"unique_id": unique_id, "prompt": prompt, "extra_pnginfo": extra_pnginfo}
        shown = {key: value if Hidden[key] in asked else None for key, value in hidden.items()}
        return type(node)(node.__name__, (node,), {"hidden": SimpleNamespace(**shown), "_locked": True})

    def run(self, node_id: str, inputs: dict[str, Any], **hidden: Any) -> NodeOutput:
        """Run a node on inputs as they are in an API prompt: those of a dynamic one flat, as ``action.cells``."""
        node = self.prepared(node_id, **hidden)
        schema = node.define_schema()
        given = {name: None if isinstance(value, Later) else value for name, value in inputs.items()}
        with torch.inference_mode():
            if node.check_lazy_status.__func__ is not ComfyNode.check_lazy_status.__func__:
                for name in node.check_lazy_status(**_nested(schema, given, pairs=True)):
                    if not isinstance(inputs.get(name), Later):
                        raise ValueError(f"{node_id} says it needs input {name}, but there is no input")
                    given[name] = inputs[name].value()
            output = node.execute(**_nested(schema, given))
        if len(output.args) != len(schema.outputs):
            raise IndexError(f"{node_id} has {len(schema.outputs)} outputs and gave {len(output.args)}")
        return output


def _nested(schema: Schema, given: dict[str, Any], *, pairs: bool = False) -> dict[str, Any]:
    """The arguments of a node: an unknown key of a dynamic input is dropped with all that belongs to it."""
    arguments = {}
    for one in schema.inputs:
        if one.id not in given:
            if not one.optional:
                raise ValueError(f"Required input is missing: {one.id}")
            continue
        if not isinstance(one, DynamicCombo.Input):
            arguments[one.id] = given[one.id]
            continue
        option = next((option for option in one.options if option.key == given[one.id]), None)
        if option is None:
            continue
        flat = {one.id: one.id, **{sub.id: f"{one.id}.{sub.id}" for sub in option.inputs}}
        needed = [f"{one.id}.{sub.id}" for sub in option.inputs if not sub.optional]
        if missing := [path for path in needed if path not in given]:
            raise ValueError(f"Required input is missing: {missing}")
        # What is left out is None.
        arguments[one.id] = {name: (given.get(path), path) if pairs else given.get(path) for name, path in flat.items()}
    return arguments


def _modules(host: Host) -> dict[str, ModuleType]:
    """The modules of one host, by name."""
    args = SimpleNamespace(disable_metadata=False, preview_method=LatentPreviewMethod.Auto)
    contents = {
        "comfy": {"__path__": []},
        "comfy.cli_args": {"args": args, "LatentPreviewMethod": LatentPreviewMethod},
        "comfy.model_management": _model_management(host),
        "comfy.model_patcher": {"CoreModelPatcher": CoreModelPatcher},
        "comfy.utils": {"ProgressBar": _progress_bar(host)},
        "comfy_api": {"__path__": []},
        "comfy_api.latest": {
            "io": io,
            "ComfyExtension": ComfyExtension,
            "Input": SimpleNamespace(Video=VideoInput),
            "InputImpl": SimpleNamespace(VideoFromComponents=VideoFromComponents, VideoFromFile=VideoFromFile),
            "Types": SimpleNamespace(VideoComponents=VideoComponents),
        },
        "comfy_execution": {"__path__": []},
        "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
        "execution": {
            "get_output_data": get_output_data,
            "get_output_from_returns": get_output_from_returns,
        },
        "folder_paths": _folder_paths(host),
        "latent_preview": {"default_preview_method": LatentPreviewMethod.Auto},
        "nodes": {"NODE_CLASS_MAPPINGS": {}},
        "server": {"PromptServer": _prompt_server(host)},
    }
    modules = {}
    for name, content in contents.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    return modules


def _model_management(host: Host) -> dict[str, Any]:
    asked = 0

    def get_torch_device():
        return torch.device("cpu")

    def unet_offload_device():
        return torch.device("cpu")

    def load_models_gpu(models, memory_required=0):
        host.loads.append((models, memory_required))

    def throw_exception_if_processing_interrupted():
        nonlocal asked
        asked += 1
        if host.interrupt_at is not None and asked >= host.interrupt_at:
            asked, host.interrupt_at = 0, None
            raise InterruptProcessingException

    found = (get_torch_device, unet_offload_device, load_models_gpu, throw_exception_if_processing_interrupted)
    return {function.__name__: function for function in (*found, InterruptProcessingException)}


def _progress_bar(host: Host) -> type:
    class ProgressBar:
        def __init__(self, total, node_id=None):
            self.total, self.node_id = total, node_id

        def update_absolute(self, value):
            host.progress.append((self.node_id, value, self.total))

    return ProgressBar


def _prompt_server(host: Host) -> type:
    class PromptServer:
        def __init__(self, loop):
            self.loop, self.on_prompt_handlers, self.prompt_queue = loop, [], PromptQueue(self)

        def add_on_prompt_handler(self, handler):
            self.on_prompt_handlers.append(handler)

        def trigger_on_prompt(self, json_data):
            for handler in self.on_prompt_handlers:
                try:
                    json_data = handler(json_data)
                except Exception:  # noqa: S112 - so does the real one: the prompt then runs as it was
                    continue
            return json_data

    PromptServer.instance = PromptServer(None)
    return PromptServer


def _folder_paths(host: Host) -> dict[str, Any]:
    folders: dict[str, tuple[list[str], set[str]]] = {}

    def add_model_folder_path(folder_name, full_folder_path):
        paths, _ = folders.setdefault(folder_name, ([], set()))
        if full_folder_path not in paths:
            paths.append(full_folder_path)

    def get_folder_paths(folder_name):
        return list(folders[folder_name][0])

    def get_filename_list(folder_name):
        paths, extensions = folders[folder_name]
        files = {str(file.relative_to(path)) for path in paths for file in Path(path).rglob("*") if file.is_file()}
        return sorted(name for name in files if not extensions or Path(name).suffix.lower() in extensions)

    def get_full_path(folder_name, filename):
        found = (Path(path, filename) for path in folders[folder_name][0])
        return next((str(path) for path in found if path.is_file()), None)

    def get_output_directory():
        return str(host.output)

    def get_temp_directory():
        return str(host.temp)

    def get_save_image_path(filename_prefix, output_dir, image_width=0, image_height=0):
        prefix = Path(filename_prefix.replace("%width%", str(image_width)).replace("%height%", str(image_height)))
        folder = Path(output_dir, prefix.parent)
        folder.mkdir(parents=True, exist_ok=True)
        counted = (re.match(re.escape(prefix.name) + r"_(\d+)_", file.name) for file in folder.iterdir())
        counter = max((int(match[1]) for match in counted if match), default=0) + 1
        subfolder = "" if prefix.parent == Path() else str(prefix.parent)
        return str(folder), prefix.name, counter, subfolder, filename_prefix

    listing = (add_model_folder_path, get_folder_paths, get_filename_list, get_full_path)
    functions = (*listing, get_output_directory, get_temp_directory, get_save_image_path)
    data = {"models_dir": str(host.base / "models"), "folder_names_and_paths": folders}
    return {**data, **{function.__name__: function for function in functions}}


@contextmanager
def comfyui(
    base: Path,
    *,
    model_paths: dict[str, tuple[list[str], set[str]]] | None = None,
    before: Callable[[Path], Any] = lambda models: None,
) -> Iterator[Host]:
    """Let the modules of a new host stand in for ComfyUI's, and load the node pack; take both away afterwards.

    Args:
        base: An empty folder.
        model_paths: What ``extra_model_paths.yaml`` has put into ``folder_names_and_paths``.
        before: Given the folder of checkpoints before the pack is loaded.
    """
    host = Host(base)
    before(host.models)
    host.modules["folder_paths"].folder_names_and_paths.update(model_paths or {})
    name = str(PACK).replace(".", "_x_")
    hidden = {key: sys.modules.pop(key) for key in host.modules if key in sys.modules}
    sys.modules.update(host.modules)
    try:
        host.load_pack(name)
        yield host
    finally:
        for key in [key for key in sys.modules if key in host.modules or key == name or key.startswith(name + ".")]:
            del sys.modules[key]
        sys.modules.update(hidden)
