"""Checkpoints: written compressed, read back to the bit, refused when damaged.

save.py      model -> folder          quantizer.py, skeleton.py   folder -> model
legacy.py    folders of others -> ours, or dense
files.py     what a file claims, checked     schema.py   what a config claims, checked
"""

from prunekern.checkpoint.report import SavedCheckpoint, SavedLayer
from prunekern.checkpoint.save import save_pretrained

__all__ = ["SavedCheckpoint", "SavedLayer", "save_pretrained"]
