"""Checkpoints: written compressed, read back to the bit, refused when damaged.

    save.py                    model -> folder
    quantizer.py, skeleton.py  folder -> model
    convert.py                 folders of others (legacy.py) -> ours, or dense
    files.py, schema.py        what a file and what a config claims, checked

transformers is imported when a folder is written or it is there anyway, see versions.py.
"""

from prunekern.checkpoint.convert import convert
from prunekern.checkpoint.report import SavedCheckpoint, SavedLayer
from prunekern.checkpoint.save import save_pretrained

__all__ = ["SavedCheckpoint", "SavedLayer", "convert", "save_pretrained"]
