"""A checkpoint of your own: how its labels are mapped to levels, in Python and as a file beside the weights."""

import shutil
from pathlib import Path

import torch

import nsfw_guard.demo
from nsfw_guard import CARDS, ModelCard, NsfwGuard, Preset, SettingError

# Stands for your fine-tuned classifier; its labels are shapes, which no vocabulary of NSFW labels knows.
folder = Path("my-checkpoint")
shutil.copytree(Path(nsfw_guard.demo.__file__).parent / "models" / "classifier", folder, dirs_exist_ok=True)

try:
    NsfwGuard(folder)
except SettingError as error:
    print(f"Without a card:\n{error}\n")

# In Python; registered, it can be used by its name.
card = CARDS.register(
    ModelCard(
        name="shapes",
        repo=str(folder),
        levels={
            "empty": "neutral",
            "circle": "neutral",
            "square": "neutral",
            "cross": "low",
            "heart": "medium",
            "triangle": "high",
        },
        presets={
            "balanced": Preset(0.5, source="argmax"),
            "strict": Preset(0.3, "low", source="our own validation set"),
        },
    )
)
print("in Python:", NsfwGuard("shapes", policy="strict").policy)

# As a file beside the weights.
levels = "\n".join(f'{label} = "{level.name.lower()}"' for label, level in card.levels.items())
(folder / "nsfw_guard.toml").write_text(
    f'[levels]\n{levels}\n\n[presets.balanced]\nthreshold = 0.4\nlevel = "high"\nsource = "our own validation set"\n'
)
guard = NsfwGuard(folder)
print("as TOML:", guard.policy)
print("a gray picture:", guard.check(torch.full((1, 3, 64, 64), 0.5))[0].to_dict())
