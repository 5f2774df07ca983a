"""The image contract: what callers and files hold, seen as frames ``[3, H, W]`` in [0, 1]."""

from .batch import ImageBatch, read_images
from .frames import Frames
from .pictures import Picture, to_picture

__all__ = ["Frames", "ImageBatch", "Picture", "read_images", "to_picture"]
